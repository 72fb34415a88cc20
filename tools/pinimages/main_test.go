// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// push makes a registry of the test have another image with that name and tag.
func push(t *testing.T, name string) (digest string) {
	t.Helper()
	image, err := random.Image(16, 1)
	if err == nil {
		err = crane.Push(image, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	hash, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return hash.String()
}

// The files of the project get the digest of each image, and keep the rest as it is.
func TestPin(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://") + "/"
	named := regexp.MustCompile(`(?m)^(FROM|\s+image:) ((?:[a-z]+/)?[a-z]+:v?\d\S+)`)
	for _, name := range []string{"deploy/docker-compose.yml", "Dockerfile"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("../..", name))
			if err != nil {
				t.Fatal(err)
			}
			before := regexp.MustCompile(`@sha256:[0-9a-f]+`).ReplaceAllString(string(text), "")
			images := named.FindAllStringSubmatch(before, -1)
			if want := map[string]int{"deploy/docker-compose.yml": 6, "Dockerfile": 1}[name]; len(images) != want {
				t.Fatalf("%d images have a version: %q, want %d", len(images), images, want)
			}
			before = named.ReplaceAllString(before, "$1 "+host+"$2")
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := pin([]string{file}); err == nil || !strings.Contains(err.Error(), images[0][2]) {
				t.Errorf("the error is %v, want one that names the image %s", err, images[0][2])
			}
			// The second time, the publisher has moved the tags.
			for range 2 {
				want := before
				for _, image := range images {
					tagged := host + image[2]
					want = strings.Replace(want, tagged, fmt.Sprintf("%s@%s", tagged, push(t, tagged)), 1)
				}
				if err := pin([]string{file}); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(file); err != nil || string(got) != want {
					t.Fatalf("%v, got\n%s\nwant\n%s", err, got, want)
				}
			}
		})
	}
}

func TestPinRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("FROM scratch\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, files := range map[string][]string{"no arguments": nil, "names no image": {file}, "no such file": {file + "x"}} {
		if err := pin(files); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %s", err, want)
		}
	}
}
