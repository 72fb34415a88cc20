// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// standInGo is a go command of a version. It downloads a module that is read-only and lacks the
// permissions to execute, as Go before 1.21 does.
const standInGo = `#!/bin/sh
case "$*" in
"env GOVERSION") echo "go$VERSION" ;;
"env GOOS") echo linux ;;
"env GOARCH") echo amd64 ;;
version) echo "go version go$VERSION linux/amd64" ;;
"mod download -json golang.org/toolchain@v0.0.1-go"*.linux-amd64)
	mkdir -p "$MODULE/bin" "$MODULE/pkg/tool/linux_amd64"
	printf '#!/bin/sh\necho the fetched go\n' >"$MODULE/bin/go"
	: >"$MODULE/pkg/tool/linux_amd64/compile"
	chmod -R a-w,a-x+X "$MODULE"
	printf '{\n\t"Path": "golang.org/toolchain",\n\t"Dir": "%s",\n\t"Sum": "h1:"\n}\n' "$MODULE"
	;;
*) echo "unexpected: go $*" >&2; exit 1 ;;
esac
`

// The toolchain is fetched if and only if the go command is older than go.mod requires.
func TestToolchain(t *testing.T) {
	for _, test := range []struct {
		version   string
		isFetched bool
	}{
		{"1.19.8", true}, {"1.25.9", true}, {"1.26.0", false}, {"1.26.12", false}, {"1.100.0", false},
	} {
		t.Run(test.version, func(t *testing.T) {
			folder := t.TempDir()
			in := func(name string) string { return filepath.Join(folder, name) }
			if err := os.WriteFile(in("go"), []byte(standInGo), 0o755); err != nil { //nolint:gosec // a program
				t.Fatal(err)
			}
			cmd := exec.Command("../scripts/toolchain.sh", in("kept/go"))
			cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"), "VERSION="+test.version, "MODULE="+in("module"), "SUDO_UID=")
			output, err := cmd.CombinedOutput()
			if err != nil || strings.Contains(string(output), "the fetched go\n") != test.isFetched {
				t.Errorf("%v:\n%s", err, output)
			}
			tool, err := os.Stat(in("kept/go/pkg/tool/linux_amd64/compile"))
			if (err == nil) != test.isFetched || err == nil && tool.Mode().Perm()&0o300 != 0o300 {
				t.Errorf("the tools: %v, %v", tool, err)
			}
		})
	}
}
