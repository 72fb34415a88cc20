// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package document

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReplace(t *testing.T) {
	const begin, end = "<!-- begin measured -->\n", "<!-- end measured -->\n"
	const want = "# Title\n\n" + begin + "\nnew\n\n" + end + "\n## Next\n"
	got, err := Replace("# Title\n\n"+begin+"\nold\n\n"+end+"\n## Next\n", "measured", "new\n")
	if err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, broken := range []string{"", begin, end, end + begin, "<!-- begin live -->\n<!-- end live -->\n"} {
		if got, err := Replace(broken, "measured", "new\n"); err == nil {
			t.Errorf("%q: got %q, want an error", broken, got)
		}
	}
}

func TestUpdate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file.md")
	if err := os.WriteFile(path, []byte("<!-- begin live -->\nold\n<!-- end live -->\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Update(path, "live", "new\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if want := "<!-- begin live -->\n\nnew\n\n<!-- end live -->\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if err := Update(path, "measured", "new\n"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want an error that names the file", err)
	}
}
