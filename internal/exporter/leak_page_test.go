// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"encoding"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// members adds the members of a JSON value to a map from their path to their type.
func members(path string, of reflect.Type, to map[string]string) {
	name := ""
	switch kind := of.Kind(); {
	case of.Implements(reflect.TypeFor[encoding.TextMarshaler]()), kind == reflect.String:
		name = "string"
	case kind == reflect.Pointer:
		members(path, of.Elem(), to)
		return
	case kind == reflect.Bool:
		name = "boolean"
	case of.ConvertibleTo(reflect.TypeFor[float64]()):
		name = "integer"
		if kind == reflect.Float64 {
			name = "number"
		}
	case kind == reflect.Slice, kind == reflect.Array:
		name = "list"
		if of.Elem().Kind() == reflect.Struct {
			members(path+"[]", of.Elem(), to)
		}
	case kind == reflect.Map:
		name = "object"
		members(path+".*", of.Elem(), to)
	case kind == reflect.Struct:
		name = "object"
		for i := range of.NumField() {
			key, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			members(strings.TrimPrefix(path+"."+key, "."), of.Field(i).Type, to)
		}
	}
	if path != "" && !strings.HasSuffix(path, "[]") {
		to[path] = name
	}
}

// docs/leak-json.md has each member of the page with its type, and no other.
func TestLeakPageIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/leak-json.md")
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string]string{}, map[string]string{}
	members("", reflect.TypeFor[leakPage](), want)
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\w+) \\| .+ \\|$").FindAllStringSubmatch(string(text), -1) {
		got[row[1]] = row[2]
	}
	if len(want) < 50 {
		t.Fatalf("only %d members: %v", len(want), want)
	}
	for path, name := range want {
		if got[path] != name {
			t.Errorf("the document has %s as %q, and it is %q", path, got[path], name)
		}
	}
	for path := range got {
		if want[path] == "" {
			t.Errorf("the document has %s, and the page has not", path)
		}
	}
}

// The page of an assessment without requests has empty lists, and every member of the document.
func TestEmptyLeakPage(t *testing.T) {
	folder := t.TempDir()
	device := strings.Replace(leakFile("1us", "login"), "{name", "{device: eth0, name", 1)
	e := start(t, "--leak.config.file="+write(t, filepath.Join(folder, "leak.yml"), device), "--leak.raw-file="+filepath.Join(folder, "raw.csv"))
	code, body := e.get(t, leakPath)
	if code != http.StatusOK || strings.Contains(body, "null") {
		t.Errorf("status %d, a member is null: %s", code, body)
	}
	var page any
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatal(err)
	}
	seen, want := map[string]bool{}, map[string]string{}
	collect("", page, seen)
	members("", reflect.TypeFor[leakPage](), want)
	for path := range want {
		isAbsent := strings.HasSuffix(path, ".*") || strings.Contains(path, "course[]") || strings.HasSuffix(path, ".pairs_unknown")
		if !seen[path] && !isAbsent {
			t.Errorf("the page lacks %s: %s", path, body)
		}
	}
}

// collect adds the paths of a JSON value to seen.
func collect(path string, value any, seen map[string]bool) {
	seen[path] = true
	switch value := value.(type) {
	case []any:
		for _, element := range value {
			collect(path+"[]", element, seen)
		}
	case map[string]any:
		for key, element := range value {
			collect(strings.TrimPrefix(path+"."+key, "."), element, seen)
		}
	}
}
