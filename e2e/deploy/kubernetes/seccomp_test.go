// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	filter "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	core "k8s.io/api/core/v1"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// asContainer is an environment variable with which the test binary acts as a container runtime:
// it drops the privileges that the JSON in the variable does not name, and executes its
// arguments.
const asContainer = "XDP_AUDIT_TEST_CONTAINER"

// confinement is the privileges of a container.
type confinement struct {
	Capabilities []string // as Linux names them
	Seccomp      *specs.LinuxSeccomp
}

// Numbers of the capabilities in question.
var capabilityNumbers = map[string]int{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_PERFMON": unix.CAP_PERFMON, "CAP_BPF": unix.CAP_BPF}

func TestMain(m *testing.M) {
	if text := os.Getenv(asContainer); text != "" {
		fmt.Fprintln(os.Stderr, becomeContainer(text, os.Args[1:]))
		os.Exit(125)
	}
	os.Exit(run(m))
}

// binaries is the directory of the programs that the tests build.
var binaries string

func run(m *testing.M) int {
	var err error
	if binaries, err = os.MkdirTemp("", "xdp-audit-kubernetes-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(binaries) }()
	return m.Run()
}

// becomeContainer returns only if something fails.
func becomeContainer(text string, args []string) error {
	runtime.LockOSThread() // exec uses the capabilities of the thread
	var c confinement
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	var keep []int
	for _, name := range c.Capabilities {
		number, ok := capabilityNumbers[name]
		if !ok {
			return fmt.Errorf("capability %s is not known", name)
		}
		keep = append(keep, number)
	}
	for number := range unix.CAP_LAST_CAP + 1 {
		if slices.Contains(keep, number) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capability %d: %w", number, err)
		}
	}
	policy, err := toPolicy(c.Seccomp)
	if err != nil {
		return err
	}
	if err := filter.LoadFilter(filter.Filter{NoNewPrivs: true, Policy: policy}); err != nil {
		return err
	}
	if err := os.Unsetenv(asContainer); err != nil {
		return err
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// toPolicy translates an OCI profile for the system calls of this machine.
func toPolicy(profile *specs.LinuxSeccomp) (filter.Policy, error) {
	policy := filter.Policy{DefaultAction: filter.ActionErrno}
	if profile.DefaultAction != specs.ActErrno {
		return policy, fmt.Errorf("the default action is %s, want %s", profile.DefaultAction, specs.ActErrno)
	}
	here, err := arch.GetInfo("")
	if err != nil {
		return policy, err
	}
	unconditional := map[string]bool{}
	conditional := filter.SyscallGroup{Action: filter.ActionAllow}
	for _, entry := range profile.Syscalls {
		if entry.Action == specs.ActErrno && len(entry.Args) == 0 && entry.ErrnoRet != nil {
			action := filter.ActionErrno | filter.Action(*entry.ErrnoRet)
			policy.Syscalls = append(policy.Syscalls, filter.SyscallGroup{Action: action, Names: entry.Names})
			continue
		}
		if entry.Action != specs.ActAllow {
			return policy, fmt.Errorf("action %s of %v is not translated", entry.Action, entry.Names)
		}
		var conditions filter.ArgumentConditions
		for _, arg := range entry.Args {
			condition := filter.Condition{Argument: uint32(arg.Index), Value: arg.Value}
			switch {
			case arg.Op == specs.OpEqualTo:
				condition.Operation = filter.Equal
			case arg.Op == specs.OpNotEqual:
				condition.Operation = filter.NotEqual
			case arg.Op == specs.OpLessThan:
				condition.Operation = filter.LessThan
			case arg.Op == specs.OpGreaterThan:
				condition.Operation = filter.GreaterThan
			case arg.Op == specs.OpMaskedEqual && arg.ValueTwo == 0:
				condition.Operation = filter.BitsNotSet
			default:
				return policy, fmt.Errorf("condition %+v of %v is not translated", arg, entry.Names)
			}
			conditions = append(conditions, condition)
		}
		for _, name := range entry.Names {
			if _, ok := here.SyscallNames[name]; !ok {
				continue // unknown here: refused, as an older libseccomp does
			}
			if conditions == nil {
				unconditional[name] = true
				continue
			}
			conditional.NamesWithCondtions = append(conditional.NamesWithCondtions, filter.NameWithConditions{Name: name, Conditions: conditions})
		}
	}
	group := filter.SyscallGroup{Action: filter.ActionAllow}
	for name := range unconditional {
		group.Names = append(group.Names, name)
	}
	slices.Sort(group.Names)
	policy.Syscalls = append(policy.Syscalls, group, conditional)
	return policy, nil
}

// The exporter runs as in the manifest: with its arguments and environment, as uid 0 with only
// the added capabilities, without new privileges, and under the profile that containerd
// generates for these capabilities.
func TestRunsAsAContainer(t *testing.T) {
	needRoot(t)
	binary := buildExporter(t)
	objects := render(t, base)
	container := containerOf(t, objects)
	environment := find[*core.ConfigMap](t, objects).Data
	added := capabilitiesOf(container)

	for _, test := range []struct {
		description string
		missing     string // a capability that the manifest adds
		want        string // in the log
	}{
		{"with what the manifest adds", "", "XDP audit hook attached on eth0 with mode=drv"},
		{"without CAP_BPF the profile has no bpf(2)", "CAP_BPF", "CAP_BPF"},
		{"without CAP_PERFMON the profile has no perf_event_open(2)", "CAP_PERFMON", "CAP_PERFMON"},
		{"without CAP_NET_ADMIN nothing attaches", "CAP_NET_ADMIN", "CAP_NET_ADMIN"},
	} {
		t.Run(test.description, func(t *testing.T) {
			capabilities := slices.DeleteFunc(slices.Clone(added), func(name string) bool { return name == test.missing })
			node, _, client := newNode(t)
			cmd, log := startContainer(t, node, capabilities, environment, append([]string{binary}, container.Args...))
			if test.missing != "" {
				err := cmd.Wait()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(log.String(), test.want) {
					t.Errorf("ended with %v and\n%s\nwant exit code 1 and %s", err, log, test.want)
				}
				return
			}
			url := fmt.Sprintf("http://127.0.0.1:%d", container.Ports[0].ContainerPort)
			awaitAnswer(t, cmd, log, client, url+container.ReadinessProbe.HTTPGet.Path)
			page, err := get(client, url+"/metrics")
			if err != nil || !strings.Contains(page, `xdp_audit_hook_up{device="eth0"} 1`) {
				t.Errorf("%v, or no hook in\n%s", err, page)
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapBnd:\t000000c000001000\n"} {
				if !strings.Contains(string(status), want) {
					t.Errorf("the process has not %q:\n%s", want, status)
				}
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("ended with %v\n%s", err, log)
			}
			if !strings.Contains(log.String(), test.want) {
				t.Errorf("no %q in\n%s", test.want, log)
			}
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_BPF") == "1" {
		t.Fatal("REQUIRE_BPF=1, but only root may make network namespaces")
	}
	t.Skip("only root may make network namespaces")
}

// buildExporter builds the exporter as in the image, once, and returns its path.
func buildExporter(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(binaries, "xdp_audit_exporter")
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir, build.Env = "../../..", append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return binary
}

// capabilitiesOf returns the capabilities that a container adds, as Linux names them.
func capabilitiesOf(container *core.Container) (names []string) {
	for _, capability := range container.SecurityContext.Capabilities.Add {
		names = append(names, "CAP_"+string(capability))
	}
	return names
}

// await waits until a container is ready.
func await(t *testing.T, cmd *exec.Cmd, log *bytes.Buffer, isReady func() error) {
	t.Helper()
	if err := netlab.Poll(deadline(t), isReady); err != nil {
		_ = cmd.Process.Kill()
		t.Fatalf("%v\n%s", errors.Join(err, cmd.Wait()), log)
	}
}

func awaitAnswer(t *testing.T, cmd *exec.Cmd, log *bytes.Buffer, client *http.Client, url string) {
	t.Helper()
	await(t, cmd, log, func() error {
		_, err := get(client, url)
		return err
	})
}

// newNode returns a network namespace with eth0, the namespace at its other end, and a client in
// the first.
func newNode(t *testing.T) (node, peer *netlab.Namespace, client *http.Client) {
	t.Helper()
	near, far, err := netlab.NewPair("eth0", "peer0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(near.Namespace.Close)
	t.Cleanup(far.Namespace.Close)
	transport := &http.Transport{DialContext: near.Namespace.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	return near.Namespace, far.Namespace, &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// startContainer starts a command with only these capabilities, under their default profile.
func startContainer(t *testing.T, node *netlab.Namespace, capabilities []string, environment map[string]string, args []string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}}
	text, err := json.Marshal(confinement{capabilities, seccomp.DefaultProfile(spec)})
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = []string{asContainer + "=" + string(text)}
	for name, value := range environment {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := node.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, log
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func get(client *http.Client, url string) (string, error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, response.Status)
	}
	return string(page), err
}
