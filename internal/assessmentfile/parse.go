// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessmentfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// The keys of the file.
var (
	fileKeys       = []string{"assessments"}
	assessmentKeys = []string{"name", "device", "protocol", "port", "classes", "order", "target", "alpha"}
	classKeys      = []string{"dscp", "source_port", "source", "vlan"}
)

// noAssessments says that a file has nothing in it, such as while an editor writes it.
const noAssessments = "it is empty: list assessments, or write \"assessments: []\" for none"

// linePattern is that of an error of the YAML library.
var linePattern = regexp.MustCompile(`^line ([0-9]+): (.*)$`)

// Parse reads the text of a file. Its path is part of errors, which describe the first problem.
//
//	assessments:
//	  - name: login         # a-z, 0-9 and _
//	    device: eth0        # default: every audited device
//	    protocol: tcp       # or udp
//	    port: 443           # of the service
//	    classes:            # two, X is the first; all keys of a class must match
//	      fixed: {dscp: 8, source_port: 1024-2047}
//	      random: {dscp: 16, source: 192.0.2.0/24, vlan: 7}
//	    order: random       # or blocks, observed; default: random
//	    target: 1us         # default: 1us
//	    alpha: 1e-5         # default: 1e-5
func Parse(path string, text []byte) (*File, error) {
	p := parser{path}
	for line, row := range bytes.Split(text, []byte("\n")) {
		if !utf8.Valid(row) {
			return nil, p.fail(line+1, "this is not UTF-8: save the file as UTF-8")
		}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, p.fail(1, noAssessments)
	} else if err != nil {
		return nil, p.syntax(err)
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, p.fail(second.Line, "a second document begins here: remove it")
	} else if !errors.Is(err, io.EOF) {
		return nil, p.syntax(err)
	}
	return p.file(document.Content[0])
}

// parser reads the nodes of a file.
type parser struct {
	path string
}

func (p parser) fail(line int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", p.path, line, fmt.Errorf(format, args...))
}

// syntax returns an error of the YAML library in the form of the others.
func (p parser) syntax(err error) error {
	message := printable.Line(strings.TrimPrefix(err.Error(), "yaml: "))
	if parts := linePattern.FindStringSubmatch(message); parts != nil {
		return fmt.Errorf("%s:%s: this is not YAML: %s: correct the line", p.path, parts[1], parts[2])
	}
	return fmt.Errorf("%s: this is not YAML: %s: correct the file", p.path, message)
}

// pair is a key with its value.
type pair struct{ key, value *yaml.Node }

// mapping returns the keys and values of a node in the order of the file.
func (p parser) mapping(n *yaml.Node, what string) (pairs []pair, err error) {
	n = target(n)
	if n.Kind != yaml.MappingNode {
		return nil, p.fail(n.Line, "%s has no keys: write each as \"key: value\"", what)
	}
	lines := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		key := target(n.Content[i])
		if key.Kind != yaml.ScalarNode {
			return nil, p.fail(n.Content[i].Line, "a key of %s is not a word: write it as \"key: value\"", what)
		}
		if line, isTwice := lines[key.Value]; isTwice {
			return nil, p.fail(key.Line, "%s has the key %.50q also in line %d: remove one", what, key.Value, line)
		}
		lines[key.Value] = key.Line
		pairs = append(pairs, pair{key, n.Content[i+1]})
	}
	return pairs, nil
}

// fields returns the values of a node by key.
func (p parser) fields(n *yaml.Node, what string, known []string) (map[string]*yaml.Node, error) {
	pairs, err := p.mapping(n, what)
	if err != nil {
		return nil, err
	}
	fields := map[string]*yaml.Node{}
	for _, f := range pairs {
		if !slices.Contains(known, f.key.Value) {
			return nil, p.fail(f.key.Line, "%s has the unknown key %.50q: use %s", what, f.key.Value, strings.Join(known, ", "))
		}
		fields[f.key.Value] = f.value
	}
	return fields, nil
}

// target returns the node that an alias stands for.
func target(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func (p parser) file(n *yaml.Node) (*File, error) {
	if target(n).ShortTag() == "!!null" {
		return nil, p.fail(n.Line, noAssessments)
	}
	fields, err := p.fields(n, "the file", fileKeys)
	if err != nil {
		return nil, err
	}
	list, exists := fields["assessments"]
	if !exists {
		return nil, p.fail(n.Line, noAssessments)
	}
	if list = target(list); list.Kind != yaml.SequenceNode {
		return nil, p.fail(list.Line, "assessments is not a list: begin each with \"- name:\", or write [] for none")
	}
	type service struct {
		protocol bpf.Protocol
		port     uint16
	}
	file, lines, services := &File{}, map[string]int{}, map[service]string{}
	for i, item := range list.Content {
		line := target(item).Line
		if i == bpf.MaxAssessments {
			return nil, p.fail(line, "%d assessments exceed the maximum of %d: remove some", len(list.Content), bpf.MaxAssessments)
		}
		a, err := p.assessment(item)
		if err != nil {
			return nil, err
		}
		if other, isTaken := lines[a.Name]; isTaken {
			return nil, p.fail(line, "assessment %s has the name of the one in line %d: give it a name of its own", a.Name, other)
		}
		s := service{a.Protocol, a.Port}
		if other, isTaken := services[s]; isTaken {
			return nil, p.fail(line, "assessments %s and %s are both of port %d of %v: remove one, a port has one assessment on all devices", other, a.Name, a.Port, a.Protocol)
		}
		lines[a.Name], services[s] = line, a.Name
		file.Assessments = append(file.Assessments, *a)
	}
	return file, nil
}

func (p parser) assessment(n *yaml.Node) (*Assessment, error) {
	what := "an assessment"
	fields, err := p.fields(n, what, assessmentKeys)
	if err != nil {
		return nil, err
	}
	a := &Assessment{Order: DefaultOrder, Target: DefaultTarget, Alpha: DefaultAlpha}
	for _, key := range assessmentKeys {
		value, exists := fields[key]
		if !exists {
			switch key {
			case "name", "protocol", "port", "classes":
				return nil, p.fail(target(n).Line, "%s has no %s: add it", what, key)
			}
			continue
		}
		if key == "classes" {
			if a.Classes, err = p.classes(value, what); err != nil {
				return nil, err
			}
			continue
		}
		text, err := textOf(value, key)
		if err == nil {
			err = a.set(key, text)
		}
		if err != nil {
			return nil, p.fail(target(value).Line, "%s: %w", what, err)
		}
		if key == "name" {
			what = "assessment " + a.Name
		}
	}
	return a, nil
}

// textOf returns a value as it is written.
func textOf(n *yaml.Node, key string) (string, error) {
	n = target(n)
	switch {
	case n.Kind != yaml.ScalarNode || n.Style&yaml.TaggedStyle != 0:
		return "", fmt.Errorf("%s is not a single value: write it as \"%s: value\"", key, key)
	case n.ShortTag() == "!!null":
		return "", fmt.Errorf("%s has no value: add one, or remove the key", key)
	}
	return n.Value, nil
}

func (p parser) classes(n *yaml.Node, what string) (classes [2]Class, err error) {
	pairs, err := p.mapping(n, what+": classes")
	if err != nil {
		return classes, err
	}
	if len(pairs) != len(classes) {
		return classes, p.fail(target(n).Line, "%s has %d classes: use two", what, len(pairs))
	}
	for i, c := range pairs {
		if err := checkName(c.key.Value); err != nil {
			return classes, p.fail(c.key.Line, "%s: class: %w", what, err)
		}
		classes[i].Name = c.key.Value
		if classes[i].Match, err = p.match(c.value, what+": class "+c.key.Value); err != nil {
			return classes, err
		}
	}
	if packet := overlap(&classes[0].Match, &classes[1].Match); packet != "" {
		return classes, p.fail(pairs[1].key.Line, "%s: a packet of %s is of both classes, %s and %s: give both a value for the same key, and different ones",
			what, packet, classes[0].Name, classes[1].Name)
	}
	return classes, nil
}

func (p parser) match(n *yaml.Node, what string) (m bpf.ClassMatch, err error) {
	fields, err := p.fields(n, what, classKeys)
	if err != nil {
		return m, err
	}
	if len(fields) == 0 {
		return m, p.fail(target(n).Line, "%s is of every packet: use %s", what, strings.Join(classKeys, ", "))
	}
	for _, key := range classKeys {
		value, exists := fields[key]
		if !exists {
			continue
		}
		text, err := textOf(value, key)
		if err == nil {
			err = setKey(&m, key, text)
		}
		if err != nil {
			return m, p.fail(target(value).Line, "%s: %w", what, err)
		}
	}
	return m, nil
}
