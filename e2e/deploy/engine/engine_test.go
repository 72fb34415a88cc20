// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package engine starts the topology of deploy/ on a Docker engine of its own.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

const patience = 10 * time.Minute

// This directory and the file of the stand-ins, relative to deploy/.
const (
	engineFolder = "../e2e/deploy/engine"
	standInFile  = engineFolder + "/docker-compose.standin.yml"
)

// engine is a Docker engine in namespaces of its own, with a copy of the project.
type engine struct {
	folder, project, deploy string
	directory               string // in which commands run
	init                    int    // first process in its namespaces
	environment             []string
}

// startEngine starts an engine, which ends with the test and leaves nothing.
func startEngine(t *testing.T) *engine {
	t.Helper()
	folder, err := os.MkdirTemp("", "xdp-audit-deploy-")
	if err != nil {
		t.Fatal(err)
	}
	project := filepath.Join(folder, "project")
	e := &engine{folder: folder, project: project, deploy: filepath.Join(project, "deploy")}
	e.directory = e.deploy
	e.environment = append(os.Environ(), "DOCKER_HOST=unix://"+folder+"/sock", "DOCKER_CONFIG="+folder+"/config", "DOCKER_BUILDKIT=0")
	e.compose(filepath.Join(e.deploy, standInFile))
	if err := copyTree(os.DirFS("../../.."), project); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("./engine.sh", folder)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting an engine: %v", err)
	}
	e.init = cmd.Process.Pid
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(folder, "log"))
			t.Logf("the engine's log ends with\n%s", log[max(0, len(log)-4000):])
		}
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the engine: %v", err)
		}
		if err := errors.Join(removeCgroups(filepath.Base(folder)), os.RemoveAll(folder)); err != nil {
			t.Errorf("removing what the engine left: %v", err)
		}
	})
	e.poll(t, func() error { _, err := e.run("docker", "version"); return err })
	e.provideCompose(t)
	return e
}

// compose adds compose files to those of the directory in which docker compose runs.
func (e *engine) compose(files ...string) {
	e.environment = append(e.environment, "COMPOSE_FILE="+strings.Join(append([]string{"docker-compose.yml"}, files...), ":"))
}

// in returns the engine with another directory for commands.
func (e *engine) in(directory string) *engine {
	other := *e
	other.directory = directory
	return &other
}

// provideCompose makes `docker compose` work if the client of this machine has no such plugin.
func (e *engine) provideCompose(t *testing.T) {
	t.Helper()
	if _, err := e.run("docker", "compose", "version"); err != nil {
		if output, err := exec.Command("standin/compose.sh", e.folder).CombinedOutput(); err != nil {
			t.Fatalf("fetching Docker Compose: %v\n%s", err, output)
		}
	}
	t.Logf("the engine is driven by compose %s", e.must(t, "docker", "compose", "version", "--short"))
}

// removeCgroups removes the empty control groups of that name in every hierarchy.
func removeCgroups(name string) error {
	var failures error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + name)
		failures = errors.Join(failures, err)
		for _, group := range found {
			failures = errors.Join(failures, os.Remove(group))
		}
	}
	return failures
}

// run runs a command in the directory, in the network of the engine.
func (e *engine) run(command ...string) (string, error) {
	// nsenter --wd would open the directory in the mount namespace that it leaves.
	enter := []string{"--target", strconv.Itoa(e.init), "--mount", "--net", "--", "env", "--chdir=" + e.directory}
	cmd := exec.Command("nsenter", append(enter, command...)...) //nolint:gosec // the test's own commands
	cmd.Env = e.environment
	output, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, output)
	}
	return string(output), err
}

// must is run for a command that must succeed.
func (e *engine) must(t *testing.T, command ...string) string {
	t.Helper()
	output, err := e.run(command...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

// shell runs lines in a shell, which stops at the first that fails.
func (e *engine) shell(t *testing.T, lines string) string {
	t.Helper()
	return e.must(t, "bash", "-euo", "pipefail", "-c", lines)
}

func (e *engine) poll(t *testing.T, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := netlab.Poll(ctx, check); err != nil {
		t.Fatal(err)
	}
}

// copyTree copies the files of a clone, without build results and without the settings and
// certificates of this machine.
func copyTree(from fs.FS, to string) error {
	left := map[string]bool{
		".git": true, ".bin": true, ".build": true, ".release": true, ".tarballs": true, "xdp_audit_exporter": true, "xdp_audit_probe": true,
		".env": true, "deploy/.env": true, "deploy/certs/tls.crt": true, "deploy/certs/tls.key": true,
	}
	return fs.WalkDir(from, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, path)
		switch {
		case left[path] && entry.IsDir():
			return fs.SkipDir
		case left[path]:
			return nil
		case entry.IsDir():
			return os.MkdirAll(target, 0o755) //nolint:gosec // containers of other users read it
		case entry.Type()&fs.ModeSymlink != 0:
			link, err := fs.ReadLink(from, path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		default:
			return copyFile(from, path, target)
		}
	})
}

func copyFile(from fs.FS, path, target string) error {
	source, err := from.Open(path)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(file, source)
	return errors.Join(err, file.Close())
}
