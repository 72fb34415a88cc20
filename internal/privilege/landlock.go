// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package privilege

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

const (
	readFiles   landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSReadDir
	appendFiles landlock.AccessFSSet = ll.AccessFSWriteFile | ll.AccessFSMakeReg
	manageFiles landlock.AccessFSSet = readFiles | appendFiles | ll.AccessFSTruncate |
		ll.AccessFSMakeDir | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir

	// ofFile are the rights that a rule for a file may grant.
	ofFile landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate

	// threadsMaySignal is erratum 2 of Landlock, fixed in Linux 6.15 and in later versions of 6.12.
	// Without the fix, the scope of signals also separates the threads of a process, and Go's
	// runtime cannot signal its own threads.
	threadsMaySignal = 1 << 1
)

// grant is access to a file, or to everything beneath a directory.
type grant struct {
	path   string
	access landlock.AccessFSSet
}

// confine limits the process to the files of needs, to TCP sockets that are already open, and
// to signals to itself. It returns the version of Landlock, or 0 if the kernel has none.
func confine(needs Needs, logger *slog.Logger) (abi int, err error) {
	abi, err = ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		logger.Warn("Files and network are not confined: the kernel has no Landlock, or it is disabled", "err", err)
		return 0, nil
	}
	grants, unfollowed := needs.grants()
	for _, path := range unfollowed {
		logger.Warn("File cannot be opened again once it is moved or replaced: keep it in a directory of its own", "path", path)
	}
	rules := make([]landlock.Rule, 0, len(grants))
	for _, g := range grants {
		if err := holdInode(g.path); err != nil {
			return 0, err
		}
		logger.Debug("File access is granted", "path", g.path, "rights", g.access)
		rules = append(rules, landlock.PathAccess(g.access, g.path))
	}
	config := landlock.V11.BestEffort()
	if errata, err := ll.LandlockGetErrata(); err != nil || errata&threadsMaySignal == 0 {
		config.Scoped &^= ll.ScopeSignal
	}
	if err := config.Restrict(rules...); err != nil {
		return 0, err
	}
	if root, err := os.Open("/"); !errors.Is(err, unix.EACCES) {
		root.Close()
		return 0, fmt.Errorf("the root directory can still be read: %w", err)
	}
	return abi, nil
}

// holdInode keeps a file of /proc in the cache of the kernel until the process ends. A rule is
// bound to an inode, and /proc creates a new inode for a file that was dropped from the cache
// for lack of memory.
func holdInode(path string) error {
	if !isBeneath(path, "/proc") {
		return nil
	}
	if _, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("holding %s: %w", path, err)
	}
	return nil
}

// grants returns what Landlock has to allow, and the files that become inaccessible when they
// are replaced.
func (n Needs) grants() (grants []grant, unfollowed []string) {
	// The sources of the metrics on the process and on the run time of the program.
	grants = existing([]grant{
		{"/proc/self", readFiles},
		{"/proc/stat", readFiles},
		{"/proc/sys/kernel/bpf_stats_enabled", readFiles},
	})
	if n.Attach {
		grants = append(grants, existing([]grant{{"/sys", readFiles}, {"/proc/sys/kernel", readFiles}})...)
	}
	follow := func(paths []string, access landlock.AccessFSSet) {
		for _, path := range paths {
			directories, files := places(path)
			for _, directory := range directories {
				grants = append(grants, grant{directory, access})
			}
			for _, file := range files {
				grants = append(grants, grant{file, access & ofFile})
				if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
					unfollowed = append(unfollowed, file)
				}
			}
		}
	}
	follow(n.Read, readFiles)
	follow(n.Append, appendFiles)
	for _, directory := range n.Create {
		grants = append(grants, grant{directory, appendFiles})
	}
	for _, directory := range n.Manage {
		grants = append(grants, grant{directory, manageFiles})
	}
	for _, directory := range n.Remove {
		grants = append(grants, grant{directory, ll.AccessFSRemoveFile})
	}
	return grants, unfollowed
}

// existing returns the grants whose path exists. Grants for files lose the rights that only
// directories have.
func existing(grants []grant) (found []grant) {
	for _, g := range grants {
		info, err := os.Stat(g.path)
		if err != nil {
			continue
		}
		if !info.IsDir() {
			g.access &= ofFile
		}
		found = append(found, g)
	}
	return found
}

// places returns where a file is found now and after it is replaced: the directories of its
// path and of the target of its symbolic links, or the file itself if the directory is shared.
// A file without path, such as a pipe on standard output, has no place; Landlock does not
// confine such files.
func places(path string) (directories, files []string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, nil
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, nil
	}
	for _, p := range []string{path, target} {
		directory, err := filepath.EvalSymlinks(filepath.Dir(p))
		if err != nil {
			continue
		}
		if IsShared(directory) {
			files = append(files, target)
		} else {
			directories = append(directories, directory)
		}
	}
	slices.Sort(directories)
	slices.Sort(files)
	return slices.Compact(directories), slices.Compact(files)
}

// IsShared reports whether a directory, after its symbolic links are resolved, holds too much to be
// granted for one file: the root directory, its subdirectories, such as /etc and /tmp, their
// subdirectories where these belong to all programs, such as /var/log, home directories, and
// directories in which every user may create files, such as /dev/shm.
func IsShared(directory string) bool {
	if target, err := filepath.EvalSymlinks(directory); err == nil {
		directory = target
	}
	if slices.Contains([]string{"/", "/home", "/usr", "/usr/local", "/var"}, filepath.Dir(directory)) {
		return true
	}
	info, err := os.Stat(directory)
	return err == nil && info.Mode()&fs.ModeSticky != 0 && info.Mode()&othersMayWrite != 0
}

// othersMayWrite is the permission of other users to write.
const othersMayWrite fs.FileMode = 0o002

// isBeneath reports whether a clean path is the directory or in it.
func isBeneath(path, directory string) bool {
	return path == directory || strings.HasPrefix(path, directory+"/")
}
