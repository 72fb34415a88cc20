// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package document updates measured blocks in Markdown files. A block stands between two
// comment lines that name it.
package document

import (
	"fmt"
	"os"
	"strings"
)

// Update replaces the block of that name in the file at path.
func Update(path, name, text string) error {
	before, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	after, err := Replace(string(before), name, text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(after), 0o644) //nolint:gosec // documents are readable for all
}

// Replace returns document with text in the block of that name, which stands between the lines
// <!-- begin name --> and <!-- end name -->. It returns an error that names both lines if the
// document does not have them in this order.
func Replace(document, name, text string) (string, error) {
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	before, rest, begins := strings.Cut(document, begin)
	_, after, ends := strings.Cut(rest, end)
	if !begins || !ends {
		return "", fmt.Errorf("no line %q that is followed by a line %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin + "\n" + text + "\n" + end + after, nil
}
