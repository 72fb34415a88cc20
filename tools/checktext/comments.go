// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"go/scanner"
	"go/token"
	"path/filepath"
	"strings"
)

const (
	maxColumns = 100 // of a line that ends with a comment

	// A tab is as wide as editors show it: gofmt leaves that open, the kernel's style sets 8.
	tabOfGo = 4
	tabOfC  = 8
)

// comment is a comment and the place where it starts.
type comment struct {
	offset int // in bytes
	text   string
}

// checkComments limits the width of lines that end with a comment. It ignores what cannot be
// wrapped: directives, and a comment of one word, such as a URL.
func checkComments(path, source string) []finding {
	comments, tab := commentsOfC(source), tabOfC
	if filepath.Ext(path) == ".go" {
		comments, tab = commentsOfGo(source), tabOfGo
	}
	var found []finding
	for _, c := range comments {
		line := 1 + strings.Count(source[:c.offset], "\n")
		before := source[strings.LastIndexByte(source[:c.offset], '\n')+1 : c.offset]
		for text := range strings.SplitSeq(c.text, "\n") {
			if n := columns(before+text, tab); n > maxColumns && canWrap(text) {
				found = append(found, finding{line, fmt.Sprintf("the comment ends at column %d: wrap it at %d", n, maxColumns)})
			}
			line, before = line+1, ""
		}
	}
	return found
}

func canWrap(comment string) bool {
	isDirective := strings.HasPrefix(comment, "//go:") || strings.HasPrefix(comment, "//nolint")
	return !isDirective && len(strings.Fields(strings.TrimLeft(comment, "/* \t"))) > 1
}

// columns returns the width of a line whose tabs go to the next multiple of tab.
func columns(line string, tab int) (n int) {
	for _, r := range line {
		if r == '\t' {
			n += tab - n%tab
		} else {
			n++
		}
	}
	return n
}

// commentsOfGo returns the comments of a Go file, also of one that does not parse.
func commentsOfGo(source string) (all []comment) {
	files := token.NewFileSet()
	file := files.AddFile("", -1, len(source))
	var s scanner.Scanner
	s.Init(file, []byte(source), nil, scanner.ScanComments)
	for {
		position, kind, text := s.Scan()
		switch kind {
		case token.EOF:
			return all
		case token.COMMENT:
			all = append(all, comment{file.Offset(position), text})
		}
	}
}

// commentsOfC returns the comments of a C file.
func commentsOfC(source string) (all []comment) {
	for i := 0; i < len(source); {
		rest := source[i:]
		length := 1
		switch {
		case strings.HasPrefix(rest, "//"):
			text, _, _ := strings.Cut(rest, "\n")
			length = len(text)
			all = append(all, comment{i, text})
		case strings.HasPrefix(rest, "/*"):
			text, _, _ := strings.Cut(rest[len("/*"):], "*/")
			length = min(len("/*")+len(text)+len("*/"), len(rest))
			all = append(all, comment{i, rest[:length]})
		case rest[0] == '"' || rest[0] == '\'':
			length = lengthOfLiteral(rest)
		}
		i += length
	}
	return all
}

// lengthOfLiteral returns the length of the string or character literal that text begins with.
func lengthOfLiteral(text string) int {
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case text[0], '\n':
			return i + 1
		}
	}
	return len(text)
}
