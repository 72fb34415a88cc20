// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// installBlocks returns the blocks of commands in README's section Install.
func installBlocks(t *testing.T) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Install\n")
	section, _, isWhole := strings.Cut(section, "\n## ")
	for _, block := range regexp.MustCompile("(?ms)^```\n(.*?)^```$").FindAllStringSubmatch(section, -1) {
		blocks = append(blocks, block[1])
		if lines := strings.Count(block[1], "\n"); lines > 3 {
			t.Errorf("%d commands, want at most three:\n%s", lines, block[1])
		}
	}
	if !isWhole || len(blocks) != 5 {
		t.Fatalf("%d blocks in the section Install, want those of the sources, deb, rpm, container and Kubernetes", len(blocks))
	}
	return blocks
}

// testInstall runs the commands of a block of README as root on a host that has a default route,
// and waits for the first flagged packet. The stand-ins are programs that this machine lacks, by
// name.
func testInstall(t *testing.T, block string, standIns map[string]string) {
	l := newLab(t)
	h := l.boot()
	l.defaultRoute(netlink.RouteAdd, device, l.audited.IPv4.Addr())
	for name, script := range standIns {
		if err := os.WriteFile(h.path("/usr/local/bin/"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	// The host does not see directories below /tmp. The tools save the time to build them.
	copied := exec.Command("sh", "-euc", `git clone --quiet . "$1"; git ls-files -z | tar --null --files-from=- --create | tar --extract --directory="$1"
		if [ -d .bin ]; then cp -r .bin "$1"; fi
		mkdir "$2"; tar --create --directory="$1" . | tar --extract --directory="$2"`, "sh", t.TempDir(), h.path("/src"))
	copied.Dir = ".."
	if output, err := copied.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	// A command that does not end gets a unit of its own.
	block = strings.ReplaceAll(block, "sudo ./xdp_audit_exporter", "systemd-run --quiet --unit="+unit+" $PWD/xdp_audit_exporter")
	begin := time.Now()
	h.run("env", "--chdir=/src", "PATH="+os.Getenv("PATH"), "HOME="+os.Getenv("HOME"), "DEBIAN_FRONTEND=noninteractive",
		"sh", "-euc", strings.ReplaceAll(block, "sudo ", ""))
	installed := time.Since(begin)
	e := &exporter{h.init, l.client(), "http"}
	e.awaitReady("/-/ready")
	f := l.newFlow(l.audited.IPv4.Addr())
	l.poll(func() error {
		l.send(f, 1000)
		if e.scrape().sum("leak_flags_total") == 0 {
			return errors.New("no packet is flagged")
		}
		return nil
	})
	t.Logf("the commands took %v, the first flagged packet %v", installed.Round(time.Second), time.Since(begin).Round(time.Second))
	if modes := l.attached(); modes[device] != attachedGeneric {
		t.Errorf("attached are %v", modes)
	}
	h.run("systemctl", "stop", unit)
	l.expectNothingAttached()
}

// Each way to install that README names ends in an audit of the device with the default route.
func TestInstall(t *testing.T) {
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	blocks := installBlocks(t)
	t.Run("sources", func(t *testing.T) { testInstall(t, blocks[0], nil) })
	t.Run("deb", func(t *testing.T) { testInstall(t, blocks[1], nil) })
	t.Run("rpm", func(t *testing.T) {
		testInstall(t, blocks[2], map[string]string{"dnf": `shift; exec rpm --install --nodeps --force-debian "$@"`})
	})
	// There is neither a registry nor a cluster here. Other tests run the image and the manifests.
	t.Run("container", func(t *testing.T) {
		version, err := os.ReadFile("../VERSION")
		if err != nil {
			t.Fatal(err)
		}
		output, err := exec.Command("sh", "-euc", `make() { echo make "$@"; }; docker() { echo docker "$@"; }; `+blocks[3]).CombinedOutput()
		want := "make docker\ndocker run --detach --network=host --cap-drop=ALL --cap-add=BPF --cap-add=PERFMON --cap-add=NET_ADMIN " +
			"xdp-audit-exporter:" + strings.TrimSpace(string(version)) + "\n"
		if err != nil || string(output) != want {
			t.Errorf("%v, got %s, want %s", err, output, want)
		}
	})
	t.Run("Kubernetes", func(t *testing.T) {
		folder, isApplied := strings.CutPrefix(strings.TrimSpace(blocks[4]), "kubectl apply -k ")
		if _, err := os.Stat(filepath.Join("..", folder, "kustomization.yaml")); err != nil || !isApplied {
			t.Errorf("%q, %v", blocks[4], err)
		}
	})
}
