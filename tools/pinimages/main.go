// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command pinimages looks up the digests of the images that its arguments, Dockerfiles and compose
// files, name with a tag, and adds the digest to each tag, in place of an older one. It
// leaves out images that a variable replaces, because their users pin them, and images that are
// built. It changes no file if the registry lacks one of the images.
package main

import (
	"fmt"
	"os"
	"regexp"

	"github.com/google/go-containerregistry/pkg/crane"
)

func main() {
	if err := pin(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pinimages:", err)
		os.Exit(1)
	}
}

// reference matches the line of an image: what is before its name, name with tag, and digest.
var reference = regexp.MustCompile(`(?m)^(FROM|\s*image:) ([\w./:-]+:[\w.-]+)(@sha256:[0-9a-f]{64})?\b`)

// built is the tag of images that no registry has.
var built = regexp.MustCompile(`:local$`)

// pin writes the digests into files.
func pin(files []string) error {
	if len(files) == 0 {
		return fmt.Errorf("got no arguments, want Dockerfiles and compose files")
	}
	pinned := map[string][]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // the arguments are the files to read
		if err != nil {
			return err
		}
		found := 0
		pinned[file] = reference.ReplaceAllFunc(text, func(line []byte) []byte {
			parts := reference.FindSubmatch(line)
			if err != nil || built.Match(parts[2]) {
				return line
			}
			found++
			var digest string
			if digest, err = crane.Digest(string(parts[2])); err != nil {
				err = fmt.Errorf("%s: looking up the digest of %s: %w", file, parts[2], err)
			}
			return fmt.Appendf(nil, "%s %s@%s", parts[1], parts[2], digest)
		})
		if err == nil && found == 0 {
			err = fmt.Errorf("%s names no image with a tag", file)
		}
		if err != nil {
			return err
		}
	}
	for file, text := range pinned {
		if err := os.WriteFile(file, text, 0o644); err != nil { //nolint:gosec // public files
			return err
		}
	}
	return nil
}
