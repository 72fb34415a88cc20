// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testContents checks what is in the deb without installing it.
func testContents(t *testing.T, deb string) {
	root := t.TempDir()
	output := func(name string, args ...string) string {
		t.Helper()
		var stderr bytes.Buffer
		cmd := exec.Command(findTool(t, name), args...)
		cmd.Stderr = &stderr
		cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "usr/bin")+":"+os.Getenv("PATH"), "LC_ALL=C.UTF-8")
		stdout, err := cmd.Output()
		if err != nil || stderr.Len() > 0 {
			t.Errorf("%s %q: %v\n%s", name, args, err, &stderr)
		}
		return string(stdout)
	}
	output("dpkg-deb", "--extract", deb, root)
	in := func(path string) string { return filepath.Join(root, path) }

	t.Run("lintian", func(t *testing.T) {
		found, _ := exec.Command(findTool(t, "lintian"), "--allow-root", "--show-overrides", deb).CombinedOutput()
		if strings.Contains(string(found), "E: ") || strings.Count(string(found), "O: ") != 2 {
			t.Errorf("want no error, and two overrides:\n%s", found)
		}
	})
	t.Run("the maintainer", func(t *testing.T) {
		want := output("git", "log", "-1", "--format=%an <%ae>")
		if got := output("dpkg-deb", "--field", deb, "Maintainer"); got != want {
			t.Errorf("got %q, want the author of the commit, %q", got, want)
		}
	})
	t.Run("the man pages", func(t *testing.T) {
		version, err := os.ReadFile("../VERSION")
		if err != nil {
			t.Fatal(err)
		}
		for name, wants := range map[string][]string{
			"xdp_audit_exporter": {
				"Audit\n", "Leak assessments\n", "Collectors and trail\n", "Web server\n", "Privileges\n", "--audit.device=NAME", "XDP_INTERFACE",
			},
			"xdp_audit_probe": {"EXIT STATUS\n", "--url=URL", "--rate=200", "--rate.unsafe", "--progress", "-h, --help", "allowed to test"},
		} {
			page := output("man", "--warnings", "--local-file", in("usr/share/man/man1/"+name+".1.gz"))
			for _, want := range append(wants, strings.ToUpper(name)+"(1)", "User Commands", name+" "+strings.TrimSpace(string(version))+" ") {
				if !strings.Contains(page, want) {
					t.Errorf("the page of %s lacks %q:\n%s", name, want, page)
				}
			}
			files := regexp.MustCompile(`(?m)^ +(/(?:etc|usr)/\S+)$`).FindAllStringSubmatch(page, -1)
			if len(files) == 0 {
				t.Errorf("the page of %s names no file:\n%s", name, page)
			}
			for _, file := range files {
				if _, err := os.Stat(in(file[1])); err != nil {
					t.Errorf("the page of %s names a file that the package lacks: %v", name, err)
				}
			}
		}
	})
	for name, flag := range map[string]string{"xdp_audit_exporter": "--audit.threshold", "xdp_audit_probe": "--assessment"} {
		begun := flag[:len(flag)-4]
		t.Run("completion of "+name+" in bash", func(t *testing.T) {
			script := `source "$1"; COMP_WORDS=("$2" "$3"); COMP_CWORD=1
				_"$2"_bash_autocomplete; echo "${COMPREPLY[@]}"; complete -p "$2" >/dev/null`
			if got := output("bash", "-euc", script, "bash", in("usr/share/bash-completion/completions/"+name), name, begun); got != flag+"\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("completion of "+name+" in zsh", func(t *testing.T) {
			// The first use loads the file and completes. compadd exists inside the line editor
			// only.
			script := `fpath=("$1" $fpath); begun=$3; autoload -Uz _$2
				compadd() { print -l -- ${(PM)2:#$begun*} }; typeset -A compstate=(nmatches 1)
				words=($2 $3); CURRENT=2; _$2`
			if got := output("zsh", "-fc", script, "zsh", in("usr/share/zsh/vendor-completions"), name, begun); got != flag+"\n" {
				t.Errorf("got %q", got)
			}
		})
	}
	t.Run("the settings", func(t *testing.T) {
		settings, err := os.ReadFile(in("etc/default/xdp_audit_exporter"))
		if err != nil {
			t.Fatal(err)
		}
		help := output(in("usr/bin/xdp_audit_exporter"), "--help")
		examples := regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`).FindAllStringSubmatch(string(settings), -1)
		if len(examples) < 10 {
			t.Errorf("%d examples in\n%s", len(examples), settings)
		}
		for _, example := range examples {
			if example[1] != "ARGS" && !strings.Contains(help, "($"+example[1]+")") {
				t.Errorf("%s is not a variable of a flag", example[1])
			}
			for _, flag := range regexp.MustCompile(`--[a-z.-]+`).FindAllString(example[2], -1) {
				if !strings.Contains(help, flag+"=") {
					t.Errorf("%s is not a flag", flag)
				}
			}
		}
	})
}
