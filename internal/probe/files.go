// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"fmt"
	"os"
)

// create creates the files of the result, so that those of an earlier run do not stay, and a path
// that cannot be written is found before the first request.
func (r *run) create() error {
	for _, output := range []struct {
		flag, path string
		file       **os.File
	}{{"json", r.o.json, &r.json}, {"junit", r.o.junit, &r.junit}} {
		if output.path == "" || output.flag == "json" && output.path == "-" {
			continue
		}
		var err error
		if *output.file, err = os.Create(output.path); err != nil { //nolint:gosec // the user names it
			*output.file = nil
			return fmt.Errorf("--%s: %w", output.flag, err)
		}
	}
	return nil
}

func (r *run) close() {
	for _, file := range []*os.File{r.json, r.junit} {
		if file != nil {
			_ = file.Close()
		}
	}
	if r.session != nil {
		r.session.close()
	}
}
