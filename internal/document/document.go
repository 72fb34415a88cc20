// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package document keeps measured blocks of the Markdown files up to date: what a run measured stands between two lines that
// name the block.
package document

import (
	"fmt"
	"os"
	"strings"
)

// Update replaces the block of that name in the document at path.
func Update(path, name, text string) error {
	before, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	after, err := Replace(string(before), name, text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(after), 0o644) //nolint:gosec // everybody may read the documents
}

// Replace returns a document with text in its block of that name, which stands between the lines <!-- begin name --> and
// <!-- end name -->. It returns an error that names the lines if they are not there in this order.
func Replace(document, name, text string) (string, error) {
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	before, rest, begins := strings.Cut(document, begin)
	_, after, ends := strings.Cut(rest, end)
	if !begins || !ends {
		return "", fmt.Errorf("no line %q with a line %q below it", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin + "\n" + text + "\n" + end + after, nil
}
