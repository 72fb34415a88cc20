// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package compose reads the compose files of deploy/ with the library of Docker Compose v2.
package compose

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

var secrets = []string{"ENCLAVE_ENROLMENT_KEY", "DRUPAL_DB_PASSWORD", "MARIADB_ROOT_PASSWORD", "GRAFANA_ADMIN_PASSWORD"}

// load reads the files with these variables and with a value for each other secret.
func load(files []string, variables map[string]string) (*types.Project, error) {
	var environment []string
	for _, name := range secrets {
		if _, isGiven := variables[name]; !isGiven {
			environment = append(environment, name+"=secret-of-the-test")
		}
	}
	for name, value := range variables {
		environment = append(environment, name+"="+value)
	}
	options, err := cli.NewProjectOptions(files, cli.WithEnv(environment), cli.WithName("xdp-audit"))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

func mustLoad(t *testing.T, files ...string) *types.Project {
	t.Helper()
	project, err := load(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	return project
}

const (
	deploy = "../../../deploy"
	file   = deploy + "/docker-compose.yml"
)

func TestEverySecretIsRequired(t *testing.T) {
	for _, name := range secrets {
		_, err := load([]string{file}, map[string]string{name: ""})
		if err == nil || !strings.Contains(err.Error(), "set "+name+" in .env") {
			t.Errorf("without %s compose says %v", name, err)
		}
	}
	example, err := os.ReadFile(deploy + "/.env.example")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range regexp.MustCompile(`\$\{(\w+)`).FindAllStringSubmatch(string(text), -1) {
		if !regexp.MustCompile(`(?m)^#?` + variable[1] + `=`).Match(example) {
			t.Errorf(".env.example does not name %s", variable[1])
		}
	}
}

func TestEveryServiceIsConfined(t *testing.T) {
	project := mustLoad(t, file)
	capabilities := map[string][]string{
		"xdp-auditor": {"BPF", "PERFMON", "NET_ADMIN"},
		"gateway":     {"NET_BIND_SERVICE", "CHOWN", "DAC_OVERRIDE", "SETUID", "SETGID"},
		"enclave":     {"NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "CHOWN", "DAC_OVERRIDE", "FOWNER"},
	}
	pinned := regexp.MustCompile(`:v?\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?(@sha256:[0-9a-f]{64})?$`)
	for name, s := range project.Services {
		t.Run(name, func(t *testing.T) {
			if s.Privileged || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.CapAdd, capabilities[name]) {
				t.Errorf("privileged %v, cap_drop %v, cap_add %v", s.Privileged, s.CapDrop, s.CapAdd)
			}
			if !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
				t.Errorf("security_opt is %v", s.SecurityOpt)
			}
			if s.ReadOnly == (name == "enclave") {
				t.Errorf("read_only is %v", s.ReadOnly)
			}
			if isRoot := s.User == "0:0" || s.User == ""; isRoot != (name == "enclave" || name == "xdp-auditor" || name == "gateway") {
				t.Errorf("the user is %q", s.User)
			}
			if s.Restart != "unless-stopped" || s.PidsLimit == 0 {
				t.Errorf("restart is %q, and pids_limit %d", s.Restart, s.PidsLimit)
			}
			if s.Logging == nil || s.Logging.Options["max-size"] == "" || s.Logging.Options["max-file"] == "" {
				t.Errorf("the log has no limit: %+v", s.Logging)
			}
			if h := s.HealthCheck; h == nil || h.Disable || len(h.Test) < 2 || h.Interval == nil || h.Timeout == nil || h.StartPeriod == nil || h.Retries == nil {
				t.Errorf("the health check is %+v", h)
			}
			switch {
			case name == "enclave": // has no versions
			case name == "xdp-auditor":
				if s.Build == nil || s.Build.Context != filepath.Dir(project.WorkingDir) {
					t.Errorf("the auditor is not built from the source: %+v", s.Build)
				}
			case !pinned.MatchString(s.Image):
				t.Errorf("the image %q has no version", s.Image)
			}
			for _, v := range s.Volumes {
				if v.Type == types.VolumeTypeBind && (!v.ReadOnly || !isBelow(project.WorkingDir, v.Source)) {
					t.Errorf("mounts %s of the host, read-only: %v", v.Source, v.ReadOnly)
				}
				if v.Type == types.VolumeTypeVolume && v.Source == "" {
					t.Errorf("the volume at %s has no name", v.Target)
				}
			}
			if name == "xdp-auditor" && len(s.Volumes)+len(s.Tmpfs)+len(s.Devices) != 0 {
				t.Errorf("the auditor has %v %v %v", s.Volumes, s.Tmpfs, s.Devices)
			}
		})
	}
	if names := slices.Sorted(maps.Keys(project.Services)); !slices.Equal(names,
		[]string{"apache", "db", "drupal", "enclave", "gateway", "grafana", "prometheus", "xdp-auditor"}) {
		t.Errorf("the services are %v", names)
	}
}

func isBelow(folder, path string) bool {
	relative, err := filepath.Rel(folder, path)
	return err == nil && filepath.IsLocal(relative)
}

func TestWhoIsOnWhichNetwork(t *testing.T) {
	project := mustLoad(t, file)
	members := map[string][]string{}
	for name, s := range project.Services {
		if s.NetworkMode != "" {
			members[s.NetworkMode] = append(members[s.NetworkMode], name)
			continue
		}
		for network := range s.Networks {
			members[network] = append(members[network], name)
		}
	}
	want := map[string][]string{
		"edge": {"enclave"}, "web_net": {"apache", "enclave"}, "app_net": {"apache", "drupal"}, "db_net": {"db", "drupal"},
		"service:enclave": {"gateway", "grafana", "prometheus", "xdp-auditor"},
	}
	for network, services := range members {
		slices.Sort(services)
		if !slices.Equal(services, want[network]) {
			t.Errorf("on %s are %v, want %v", network, services, want[network])
		}
	}
	for name, network := range project.Networks {
		if network.Internal == (name == "edge") {
			t.Errorf("%s: internal is %v", name, network.Internal)
		}
	}
	enclave := project.Services["enclave"]
	if enclave.Networks["edge"].Priority <= enclave.Networks["web_net"].Priority {
		t.Error("edge is not the enclave's first network, and eth0 not its device")
	}
	for name, s := range project.Services {
		var published []string
		for _, p := range s.Ports {
			published = append(published, fmt.Sprintf("%s:%s:%d", p.HostIP, p.Published, p.Target))
		}
		if got := strings.Join(published, " "); got != map[string]string{"enclave": ":443:443"}[name] {
			t.Errorf("%s publishes %q", name, got)
		}
	}
}

// The services in the enclave's namespace listen on its loopback, except for the gateway.
func TestLoopback(t *testing.T) {
	project := mustLoad(t, file)
	for service, want := range map[string]string{"xdp-auditor": "--web.listen-address=127.0.0.1:9400", "prometheus": "--web.listen-address=127.0.0.1:9090"} {
		if command := project.Services[service].Command; !slices.Contains(command, want) {
			t.Errorf("%s is started with %v", service, command)
		}
	}
	grafana := project.Services["grafana"].Environment
	if address := grafana["GF_SERVER_HTTP_ADDR"]; address == nil || *address != "127.0.0.1" {
		t.Errorf("Grafana listens on %v", address)
	}
}

// The gateway sends Strict-Transport-Security only if it is told to.
func TestHSTS(t *testing.T) {
	const header = "Strict-Transport-Security"
	for setting, sends := range map[string]bool{"": false, "off": false, "on": true} {
		project, err := load([]string{file}, map[string]string{"GATEWAY_HSTS": setting})
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, v := range project.Services["gateway"].Volumes {
			if v.Type != types.VolumeTypeBind || strings.HasSuffix(v.Source, "/certs") {
				continue
			}
			text, err := os.ReadFile(v.Source)
			if err != nil {
				t.Fatal(err)
			}
			found += strings.Count(string(text), "add_header "+header)
			if v.Target == "/etc/nginx/hsts.conf" && v.Bind.CreateHostPath {
				t.Error("the engine would make a directory in place of the file of a mistyped GATEWAY_HSTS")
			}
		}
		if (found > 0) != sends {
			t.Errorf("with GATEWAY_HSTS=%s the gateway has the header %d times", setting, found)
		}
	}
	text, err := os.ReadFile(deploy + "/nginx/nginx.conf")
	if err != nil || strings.Count(string(text), "server_name ") != strings.Count(string(text), "include /etc/nginx/hsts.conf;") {
		t.Errorf("not every name has the setting: %v", err)
	}
}

func TestOverrides(t *testing.T) {
	readme, err := os.ReadFile(deploy + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	snippets := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(snippets) != 2 {
		t.Fatalf("README.md has %d overrides, want those for old engines and for paranoid kernels", len(snippets))
	}
	folder := t.TempDir()
	forOldEngines, forParanoidKernels := filepath.Join(folder, "old.yml"), filepath.Join(folder, "paranoid.yml")
	for i, path := range []string{forOldEngines, forParanoidKernels} {
		if err := os.WriteFile(path, []byte(snippets[i][1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		file         string
		isPrivileged bool
		capabilities []string
		mounts       []string
	}{
		{deploy + "/docker-compose.privileged.yml", true, nil, []string{"/lib/modules:ro", "/sys/kernel/debug", "/usr/src:ro"}},
		{forOldEngines, false, []string{"SYS_ADMIN", "NET_ADMIN"}, nil},
		{forParanoidKernels, false, []string{"BPF", "PERFMON", "NET_ADMIN", "SYS_ADMIN"}, nil},
	} {
		t.Run(filepath.Base(test.file), func(t *testing.T) {
			project := mustLoad(t, file, test.file)
			auditor := project.Services["xdp-auditor"]
			var mounts []string
			for _, v := range auditor.Volumes {
				mount := v.Source
				if v.Target != v.Source {
					mount += ":" + v.Target
				}
				if v.ReadOnly {
					mount += ":ro"
				}
				mounts = append(mounts, mount)
			}
			slices.Sort(mounts)
			if auditor.Privileged != test.isPrivileged || !slices.Equal(auditor.CapAdd, test.capabilities) || !slices.Equal(mounts, test.mounts) {
				t.Errorf("privileged %v, cap_add %v, mounts %v", auditor.Privileged, auditor.CapAdd, mounts)
			}
			// The rest of the topology is the same.
			plain := mustLoad(t, file)
			a, b := plain.Services["xdp-auditor"], auditor
			a.Privileged, a.CapAdd, a.Volumes = b.Privileged, b.CapAdd, b.Volumes
			plain.Services["xdp-auditor"] = a
			plain.ComposeFiles = project.ComposeFiles
			expected, err := plain.MarshalYAML()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := project.MarshalYAML(); err != nil || string(got) != string(expected) {
				t.Errorf("%v, got\n%s\nwant\n%s", err, got, expected)
			}
		})
	}
}

func TestStandInsChangeImagesAlone(t *testing.T) {
	plain, project := mustLoad(t, file), mustLoad(t, file, "../engine/docker-compose.standin.yml")
	for name, s := range project.Services {
		if name != "xdp-auditor" && !strings.HasPrefix(s.Image, "standin-") {
			t.Errorf("%s has the image %s", name, s.Image)
		}
		s.Image = plain.Services[name].Image
		project.Services[name] = s
	}
	want, err := plain.MarshalYAML()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := project.MarshalYAML(); err != nil || string(got) != string(want) {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}
