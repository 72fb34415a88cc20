// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kernels

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// archive gets kernels from Debian packages. It uses lists, sources and a cache of its own for
// apt, and the mirror, keys and proxy of this machine. It installs nothing.
type archive struct {
	folder string
	stale  error // why the lists could not be updated
}

// suites are the suites with kernels, by the last part of the mirror's path.
var suites = map[string][]string{
	"debian-security": {"bookworm-security", "bullseye-security"},
	"debian":          {"trixie-backports"},
}

// listsAge is the maximum age of the lists. The newest kernel of a series has another name after
// each security update.
const listsAge = 24 * time.Hour

// image is a kernel with the modules that the tests need.
type image struct {
	abi     string // such as 6.1.0-56-cloud-amd64
	kernel  string
	modules []string
}

// modules are those of the devices that the tests make, and of what the devices need to work. The
// modules that these depend on are added. A guest loads veth, and the others when a device is made.
var modules = []string{
	requiredModule,
	"netkit", "bridge", "bonding", "team", "team_mode_roundrobin", "dummy", "vrf", "nlmon", "vsockmon", "tun",
	"macvlan", "macvtap", "ipvlan", "ipvtap", "8021q", "macsec",
	"ifb", "sch_ingress", "cls_bpf", "cls_matchall", "act_mirred",
	"vxlan", "geneve", "ip_gre", "ip6_gre", "ipip", "sit", "ip6_tunnel", "l2tp_eth", "wireguard",
	"ip_vti", "ip6_vti", "xfrm_interface", "xfrm_user", "ah4", "ah6",
	"gcm", "ctr", "ghash_generic", // of MACsec
}

const requiredModule = "veth"

// openArchive updates the lists if they are old. Without a network an archive has the kernels
// that it had before.
func openArchive(ctx context.Context, folder string) (*archive, error) {
	a := &archive{folder: folder}
	for _, sub := range []string{"lists/partial", "cache/archives/partial", "sources", "images"} {
		if err := os.MkdirAll(filepath.Join(folder, sub), 0o755); err != nil {
			return nil, err
		}
	}
	config := fmt.Sprintf(`Dir::State::lists "%[1]s/lists";
Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/sources/kernels.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Sandbox::User "root";
APT::Update::Post-Invoke-Success "";
`, folder)
	if err := os.WriteFile(filepath.Join(folder, "apt.conf"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	if info, err := os.Stat(a.stamp()); err == nil && time.Since(info.ModTime()) < listsAge {
		return a, nil
	}
	a.stale = a.update(ctx)
	return a, nil
}

func (a *archive) stamp() string { return filepath.Join(a.folder, "updated") }

func (a *archive) update(ctx context.Context) error {
	// Without lists, apt still knows its sources, and prints the URIs of their lists.
	none, err := os.MkdirTemp(a.folder, "none-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(none) }()
	uris, err := output(exec.CommandContext(ctx, "apt-get", "-o", "Dir::State::lists="+none, "--print-uris", "update"))
	if err != nil {
		return err
	}
	sources, err := sourcesOf(uris)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(a.folder, "sources/kernels.list"), []byte(sources), 0o600); err != nil {
		return err
	}
	// Not every suite must exist: a missing kernel is reported later.
	_, failed := a.apt(ctx, "apt-get", "-q", "update")
	if failed != nil {
		return failed
	}
	return os.WriteFile(a.stamp(), nil, 0o600)
}

// sourcesOf returns the lines of a sources.list, for the mirrors in the output of apt-get
// --print-uris update.
func sourcesOf(uris string) (string, error) {
	var lines []string
	for path, names := range suites {
		mirror := regexp.MustCompile(`'(\S+/` + path + `)/+dists/`).FindStringSubmatch(uris)
		if mirror == nil {
			return "", fmt.Errorf("apt has no source on a mirror's path /%s", path)
		}
		for _, suite := range names {
			lines = append(lines, fmt.Sprintf("deb [arch=amd64] %s %s main\n", mirror[1], suite))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// apt runs a program of apt with the configuration of the archive.
func (a *archive) apt(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(a.folder, "cache")
	cmd.Env = append(os.Environ(), "LC_ALL=C", "APT_CONFIG="+filepath.Join(a.folder, "apt.conf"))
	return output(cmd)
}

// output runs a command. The error contains its last line on standard error.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, lines[len(lines)-1])
	}
	return stdout.String(), nil
}

// kernel returns the newest kernel of a series, such as 6.1. Without lists it returns the newest
// that was unpacked before.
func (a *archive) kernel(ctx context.Context, series string) (image, error) {
	names, err := a.apt(ctx, "apt-cache", "pkgnames", "linux-image-"+series+".")
	if err != nil {
		return image{}, err
	}
	if abi := newest(strings.Fields(names), series); abi != "" {
		i, err := a.image(ctx, abi)
		if err == nil || a.stale == nil {
			return i, err
		}
	}
	unpacked, err := filepath.Glob(filepath.Join(a.folder, "images", series+".*"))
	if err != nil {
		return image{}, err
	}
	for i, path := range unpacked {
		unpacked[i] = "linux-image-" + filepath.Base(path)
	}
	if abi := newest(unpacked, series); abi != "" {
		return a.image(ctx, abi)
	}
	if a.stale != nil {
		return image{}, fmt.Errorf("no kernel %s can be fetched, and none was before: %w", series, a.stale)
	}
	return image{}, fmt.Errorf("no package has a kernel %s", series)
}

// newest returns the ABI name of the newest cloud kernel of a series among packages, or "".
func newest(packages []string, series string) string {
	const flavour = "-cloud-amd64"
	pattern := regexp.MustCompile(`^linux-image-(` + regexp.QuoteMeta(series) + `\.[0-9][0-9a-z.+-]*)` + flavour + `$`)
	var abis []string
	for _, name := range packages {
		if match := pattern.FindStringSubmatch(name); match != nil {
			abis = append(abis, match[1])
		}
	}
	if len(abis) == 0 {
		return ""
	}
	return slices.MaxFunc(abis, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) }) + flavour
}

// numbers returns the numbers in a version, in order.
func numbers(version string) (all []int) {
	for _, digits := range regexp.MustCompile(`[0-9]+`).FindAllString(version, -1) {
		n, _ := strconv.Atoi(digits) // a number that is too large becomes the largest
		all = append(all, n)
	}
	return all
}

// image returns the kernel of an ABI name. It downloads and unpacks the kernel if necessary.
func (a *archive) image(ctx context.Context, abi string) (image, error) {
	folder := filepath.Join(a.folder, "images", abi)
	i := image{abi: abi, kernel: filepath.Join(folder, "vmlinuz")}
	isReady := func() (bool, error) {
		var err error
		i.modules, err = filepath.Glob(filepath.Join(folder, moduleFolder, "*.ko"))
		_, missing := os.Stat(filepath.Join(folder, moduleFolder))
		return missing == nil, err
	}
	if ready, err := isReady(); ready || err != nil {
		return i, err
	}
	scratch, err := os.MkdirTemp(a.folder, "unpacking-")
	if err != nil {
		return i, err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	root, ready := filepath.Join(scratch, "root"), filepath.Join(scratch, "ready")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(ready, 0o755)); err != nil {
		return i, err
	}
	if err := a.unpack(ctx, abi, scratch, root); err != nil {
		return i, err
	}
	if err := extract(ctx, root, abi, ready); err != nil {
		return i, err
	}
	// A folder of an earlier version has other modules.
	if err := errors.Join(os.RemoveAll(folder), os.Rename(ready, folder)); err != nil {
		return i, err
	}
	_, err = isReady()
	return i, err
}

// moduleFolder is where an unpacked kernel has its modules. Its name has a number, which grows when
// the list of modules changes.
const moduleFolder = "modules-2"

// unpack downloads the packages of a kernel to one directory and unpacks them into another.
func (a *archive) unpack(ctx context.Context, abi, folder, root string) error {
	depends, err := a.apt(ctx, "apt-cache", "depends", "--important", "linux-image-"+abi)
	if err != nil {
		return err
	}
	// Since Linux 7.0, the kernel and its modules are in separate packages, and the first one is
	// empty.
	packages := []string{"linux-image-" + abi}
	for _, match := range regexp.MustCompile(`(?m)^ *Depends: (linux-(?:binary|modules)-\S+)$`).FindAllStringSubmatch(depends, -1) {
		packages = append(packages, match[1])
	}
	download := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "download"}, packages...)...)
	download.Dir = folder
	download.Env = append(os.Environ(), "LC_ALL=C", "APT_CONFIG="+filepath.Join(a.folder, "apt.conf"))
	if _, err := output(download); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.deb"))
	if err != nil || len(files) != len(packages) {
		return fmt.Errorf("%d of the packages %v were downloaded: %w", len(files), packages, err)
	}
	for _, file := range files {
		if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "--extract", file, root)); err != nil {
			return err
		}
	}
	return nil
}

// extract moves the kernel and its modules out of the unpacked packages.
func extract(ctx context.Context, root, abi, to string) error {
	kernel, err := findOne(root, "boot/vmlinuz-"+abi, "usr/lib/modules/"+abi+"/vmlinuz")
	if err != nil {
		return err
	}
	if err := os.Rename(kernel, filepath.Join(to, "vmlinuz")); err != nil {
		return err
	}
	files := map[string]string{} // by the name of the module
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if name, _, isModule := strings.Cut(filepath.Base(path), ".ko"); isModule {
			files[normal(name)] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	folder := filepath.Join(to, moduleFolder)
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	wanted := slices.Clone(modules)
	for n := 0; n < len(wanted); n++ {
		name := wanted[n]
		module, isThere := files[name]
		if !isThere && name == requiredModule {
			return fmt.Errorf("the packages have no module %s", name)
		}
		if !isThere {
			continue // a part of the kernel, or not in this one: its test fails
		}
		if strings.HasSuffix(module, ".xz") {
			if _, err := output(exec.CommandContext(ctx, "unxz", module)); err != nil {
				return err
			}
			module = strings.TrimSuffix(module, ".xz")
		}
		depends, err := dependencies(module)
		if err != nil {
			return err
		}
		for _, other := range depends {
			if !slices.Contains(wanted, other) {
				wanted = append(wanted, other)
			}
		}
		if err := os.Rename(module, filepath.Join(folder, name+".ko")); err != nil {
			return err
		}
	}
	return nil
}

// normal returns the name of a module as the kernel writes it.
func normal(module string) string { return strings.ReplaceAll(module, "-", "_") }

// dependencies returns the names of the modules that a module lists in its section .modinfo.
func dependencies(module string) (names []string, err error) {
	f, err := elf.Open(module)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s has no section .modinfo", module)
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(text), "\x00") {
		if list, isList := strings.CutPrefix(entry, "depends="); isList {
			for name := range strings.SplitSeq(list, ",") {
				if name != "" {
					names = append(names, normal(name))
				}
			}
		}
	}
	return names, nil
}

// findOne returns the one file that matches one of the patterns.
func findOne(root string, patterns ...string) (string, error) {
	var found []string
	for _, pattern := range patterns {
		matches, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", err
		}
		found = append(found, matches...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files match %v in the packages, want 1", len(found), patterns)
	}
	return found[0], nil
}

func TestNewestOfASeries(t *testing.T) {
	packages := []string{
		"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-0.deb11.52-cloud-amd64",
		"linux-image-6.1.0-57-amd64", "linux-image-6.1.0-58-cloud-amd64-unsigned", "linux-image-6.1-cloud-amd64",
		"linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.117+deb12.1-cloud-amd64",
		"linux-image-7.0.13+deb13-cloud-amd64", "linux-image-7.3.4+deb13-cloud-amd64",
	}
	for series, want := range map[string]string{
		"6.1": "6.1.0-56-cloud-amd64", "6.12": "6.12.117+deb12.1-cloud-amd64", "7": "7.3.4+deb13-cloud-amd64", "6.18": "",
	} {
		if got := newest(packages, series); got != want {
			t.Errorf("%s: got %q, want %q", series, got, want)
		}
	}
}

func TestSourcesAreOnTheMirrorOfThisMachine(t *testing.T) {
	got, err := sourcesOf(`'http://mirror.example/debian/dists/bookworm/InRelease' mirror.example_debian_dists_bookworm_InRelease 0
'http://mirror.example/debian-security//dists/bookworm-security/InRelease' mirror.example_debian-security_dists_InRelease 0
`)
	const want = `deb [arch=amd64] http://mirror.example/debian trixie-backports main
deb [arch=amd64] http://mirror.example/debian-security bookworm-security main
deb [arch=amd64] http://mirror.example/debian-security bullseye-security main
`
	if err != nil || got != want {
		t.Errorf("got %v:\n%s\nwant:\n%s", err, got, want)
	}
	if got, err := sourcesOf("'http://mirror.example/ubuntu/dists/noble/InRelease' x 0\n"); err == nil {
		t.Errorf("got no error, but %s", got)
	}
}
