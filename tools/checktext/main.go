// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command checktext checks the wording of text files, the width of comments in Go and C, and the
// length of Go and C files. Its arguments are the files to check. It prints one line for each
// finding, as file:line: message, and exits with code 1 if there is one.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// finding is one violation of a rule.
type finding struct {
	line    int // in the file, from 1
	message string
}

func main() {
	failed := false
	for _, path := range os.Args[1:] {
		content, err := os.ReadFile(path) //nolint:gosec // the arguments are the files to read
		if err != nil {
			fmt.Fprintln(os.Stderr, "checktext:", err)
			os.Exit(2)
		}
		for _, f := range check(path, content) {
			failed = true
			fmt.Printf("%s:%d: %s\n", path, f.line, f.message)
		}
	}
	if failed {
		os.Exit(1)
	}
}

// generated is the line by which Go tools recognise generated files.
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// check applies the rules that hold for a file of that name.
func check(path string, content []byte) []finding {
	isCode := slices.Contains([]string{".go", ".c", ".h"}, filepath.Ext(path))
	if isCode && generated.Match(content) {
		return nil
	}
	var found []finding
	if hasOwnWords(path) {
		found = checkWords(string(content))
	}
	if isCode {
		found = append(found, checkComments(path, string(content))...)
		found = append(found, checkLength(path, content)...)
	}
	return found
}

// maxLines is the number of lines a reader can still oversee in one file.
const maxLines = 400

// checkLength limits the length of files that are not tests.
func checkLength(path string, content []byte) []finding {
	if ok, _ := filepath.Match("*_test.go", filepath.Base(path)); ok {
		return nil
	}
	if lines := bytes.Count(content, []byte("\n")); lines > maxLines {
		return []finding{{maxLines + 1, fmt.Sprintf("the file has %d lines, at most %d are allowed: split it by subject", lines, maxLines)}}
	}
	return nil
}
