package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hatchd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, src Sources) Config {
	t.Helper()
	c, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func loadErrors(t *testing.T, src Sources) Errors {
	t.Helper()
	_, err := Load(src)
	var all Errors
	if !errors.As(err, &all) {
		t.Fatalf("Load: %v, want Errors", err)
	}
	return all
}

func value(t *testing.T, c Config, name string) Value {
	t.Helper()
	for _, v := range c.Values() {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("no value named %s", name)
	return Value{}
}

func TestDefaults(t *testing.T) {
	c := load(t, Sources{Executable: "/opt/hatch/hatchd"})
	if c.HTTPAddr != "127.0.0.1:8080" || c.DataDir != "/var/lib/hatch" || c.DatabaseURL != "/var/lib/hatch/hatch.db" {
		t.Errorf("addresses and paths: %+v", c)
	}
	if c.AgentPath != "/opt/hatch/hatch-agent" {
		t.Errorf("AgentPath = %s", c.AgentPath)
	}
	if c.Network.Bridge != "hatch0" || c.Network.Gateway != netip.MustParseAddr("172.16.0.1") || c.Network.Prefix != netip.MustParsePrefix("172.16.0.0/24") {
		t.Errorf("Network = %+v", c.Network)
	}
	if c.HostShutdown != "sleep" || c.HostShutdownTimeout != 90*time.Second || c.Autostart != "restore" {
		t.Errorf("the host's shutdown: %+v", c)
	}
	if c.StopTimeout != 30*time.Second || c.SSHPortMin != 16000 || c.SSHPortMax != 26000 || c.DefaultMemMiB != 512 || c.MemOver != 1 || c.DiskOver != 10 || c.IdleCPUPercent != 10 || c.IdleNetworkBytes != 1<<20 {
		t.Errorf("numbers: %+v", c)
	}
	if c.MaxSnapshotsPerVM != 10 || c.SnapshotMaxAge != 0 || c.SnapshotDiskMiB != 0 {
		t.Errorf("snapshots: %+v", c)
	}
	if len(c.SSHAllowed) != 1 || c.SSHAllowed[0] != netip.MustParsePrefix("127.0.0.1/32") || c.EgressAllowPrivate != nil {
		t.Errorf("networks: %v %v", c.SSHAllowed, c.EgressAllowPrivate)
	}
	if v := value(t, c, "database_url"); v.Value != "/var/lib/hatch/hatch.db" || v.Source != FromDefault {
		t.Errorf("database_url shown as %+v", v)
	}
}

func TestCgroup(t *testing.T) {
	if c := load(t, Sources{}); c.Cgroup != "/hatch" {
		t.Errorf("by default it is %q", c.Cgroup)
	}
	if c := load(t, Sources{Environ: []string{"HATCH_CGROUP=/system.slice/hatch-vms.service"}}); c.Cgroup != "/system.slice/hatch-vms.service" {
		t.Errorf("it is %q", c.Cgroup)
	}
	for _, invalid := range []string{"/", "hatch", "/hatch/", "/a/../b", "/a//b", "/.", "/vm*", "/a b", "/" + strings.Repeat("a", 1024)} {
		if all := loadErrors(t, Sources{Environ: []string{"HATCH_CGROUP=" + invalid}}); !strings.Contains(all.Error(), "absolute path of a cgroup") {
			t.Errorf("%q: %v", invalid, all)
		}
	}
}

func TestImageDirs(t *testing.T) {
	if c := load(t, Sources{}); c.ImageDirs != nil {
		t.Errorf("by default it is %q", c.ImageDirs)
	}
	want := []string{"/srv/images", "/srv/more"}
	for name, src := range map[string]Sources{
		"variable": {Environ: []string{"HATCH_IMAGE_DIRS=/srv/images/: /srv/../srv/more"}},
		"file":     {DefaultFile: write(t, "image_dirs: [/srv/images, /srv/more]\n")},
	} {
		if c := load(t, src); !slices.Equal(c.ImageDirs, want) {
			t.Errorf("%s: it is %q", name, c.ImageDirs)
		}
	}
	for _, invalid := range []string{"srv", "/srv:more", "~/images", strings.Repeat("/a:", 65)} {
		if all := loadErrors(t, Sources{Environ: []string{"HATCH_IMAGE_DIRS=" + invalid}}); !strings.Contains(all.Error(), "director") {
			t.Errorf("%q: %v", invalid, all)
		}
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "default_vcpu: 2\ndefault_mem_mib: 1024\ndefault_disk_mib: 4096\n")
	c := load(t, Sources{
		Args:    []string{"--config", file, "--default-vcpu=8"},
		Environ: []string{"HATCH_DEFAULT_VCPU=4", "HATCH_DEFAULT_MEM_MIB=2048", "HATCH_LOG_LEVEL="},
	})
	for _, want := range []Value{
		{"default_vcpu", "HATCH_DEFAULT_VCPU", "8", FromFlag},
		{"default_mem_mib", "HATCH_DEFAULT_MEM_MIB", "2048", FromEnv},
		{"default_disk_mib", "HATCH_DEFAULT_DISK_MIB", "4096", FromFile},
		{"log_level", "HATCH_LOG_LEVEL", "info", FromDefault},
	} {
		t.Run(fmt.Sprintf("%+v", want), func(t *testing.T) {
			if got := value(t, c, want.Name); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	if c.DefaultVCPU != 8 || c.DefaultMemMiB != 2048 || c.DefaultDiskMiB != 4096 {
		t.Errorf("the configuration is %+v", c)
	}
}

func TestFileIsFoundByVariableAndByDefault(t *testing.T) {
	file := write(t, "ssh_allowed_cidr: [10.0.0.0/8, 192.168.1.7]\n")
	for name, src := range map[string]Sources{
		"variable": {Environ: []string{"HATCH_CONFIG=" + file}},
		"default":  {DefaultFile: file},
	} {
		t.Run(name, func(t *testing.T) {
			c := load(t, src)
			if len(c.SSHAllowed) != 2 || c.SSHAllowed[1] != netip.MustParsePrefix("192.168.1.7/32") {
				t.Errorf("%s: SSHAllowed = %v", name, c.SSHAllowed)
			}
		})
	}
	load(t, Sources{DefaultFile: "/nonexistent/hatchd.yaml"}) // a missing default file is no error
	if f := loadErrors(t, Sources{Args: []string{"--config=/nonexistent/hatchd.yaml"}}); len(f) != 1 {
		t.Errorf("a named file that is missing: %v", f)
	}
}

func TestAliases(t *testing.T) {
	c := load(t, Sources{Environ: []string{"DATABASE_URL=postgres://u:p@h/n", "HATCH_MAX_OVERLAY_SIZE_MIB=9000"}})
	if c.DatabaseURL != "postgres://u:p@h/n" || c.DefaultDiskMiB != 9000 {
		t.Errorf("aliases: %s %d", c.DatabaseURL, c.DefaultDiskMiB)
	}
	f := loadErrors(t, Sources{Environ: []string{"DATABASE_URL=postgres://u:p@h/n", "HATCH_DATABASE_URL=postgres://u:p@h/m"}})
	if len(f) != 1 || f[0].Where != "DATABASE_URL" || strings.Contains(f.Error(), "u:p@") {
		t.Errorf("aliases with different values: %v", f)
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	file := write(t, "http_adr: x\nstop_timeout: 30\n")
	f := loadErrors(t, Sources{
		Args: []string{"--config", file, "--log-level=loud", "surplus"},
		Environ: []string{
			"HATCH_DEFAULT_VCPU=many", "HATCH_BRIDGE_CIDR=172.16.0.0/24", "HATCH_SSH_ALLOWED_CIDR=10.0.0.0/40",
			"HATCH_SSH_PORT_MIN=30000", "HATCH_DEFAULT_KERNEL_PATH=/k", "HATCH_API_KEY=tooshort-secret",
			"HATCH_MEM_OVERCOMMIT=NaN", "HATCH_VMM=xen", "HATCH_HTTP_ADDR=8080", "HATCH_BRIDGE_NAME=a-name-too-long-for-linux",
			"HATCH_UID_MIN=0", "HATCH_DATABASE_URL=mysql://x", "HATCH_AGENT_PATH=bin/hatch-agent",
		},
	})
	text := f.Error()
	for _, want := range []string{
		"http_adr", "did you mean http_addr?", `stop_timeout: "30"`, "with its unit", `--log-level: "loud"`, `flags: "surplus"`,
		`HATCH_DEFAULT_VCPU: "many": must be a whole number from 1 to 1024`, "HATCH_BRIDGE_CIDR", "HATCH_SSH_ALLOWED_CIDR",
		"HATCH_SSH_PORT_MIN", "HATCH_DEFAULT_KERNEL_PATH, HATCH_DEFAULT_ROOTFS_PATH", "HATCH_API_KEY: must be 16 to 512 bytes",
		"HATCH_MEM_OVERCOMMIT", "one of auto, qemu, firecracker", "HATCH_HTTP_ADDR", "HATCH_BRIDGE_NAME",
		"HATCH_UID_MIN", "HATCH_DATABASE_URL", "HATCH_AGENT_PATH",
	} {
		t.Run(want, func(t *testing.T) {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in:\n%s", want, text)
			}
		})
	}
	if strings.Contains(text, "tooshort-secret") {
		t.Errorf("a secret is shown:\n%s", text)
	}
}

func TestPortsMustNotOverlap(t *testing.T) {
	f := loadErrors(t, Sources{Environ: []string{"HATCH_HTTP_ADDR=:16000"}})
	if len(f) != 1 || f[0].Where != "HATCH_HTTP_ADDR" {
		t.Errorf("errors: %v", f)
	}
	load(t, Sources{Environ: []string{"HATCH_HTTP_ADDR=127.0.0.1:0"}})
}

func TestSecretsAreMasked(t *testing.T) {
	c := load(t, Sources{Environ: []string{"HATCH_API_KEY=a-very-secret-key", "HATCH_DATABASE_URL=postgres://u:hunter2@h/n?password=hunter2"}})
	if c.APIKey != "a-very-secret-key" {
		t.Errorf("APIKey = %q", c.APIKey)
	}
	for _, v := range c.Values() {
		if strings.Contains(v.Value, "secret-key") || strings.Contains(v.Value, "hunter2") {
			t.Errorf("%s shows %s", v.Name, v.Value)
		}
	}
	if Flags().Lookup("api-key") != nil {
		t.Error("a secret can be given as an argument")
	}
}

func TestWarnings(t *testing.T) {
	file := write(t, "api_key: a-very-secret-key\n")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	c := load(t, Sources{DefaultFile: file, Environ: []string{"HATCH_DEFAULT_VCPUS=2", "HATCH_URL=http://x", "HATCH_TEST_KERNEL=/x"}})
	if len(c.Warnings) != 2 || !strings.Contains(c.Warnings[0], "chmod 600") || !strings.Contains(c.Warnings[1], "did you mean HATCH_DEFAULT_VCPU?") {
		t.Errorf("warnings: %q", c.Warnings)
	}
}

func TestHelp(t *testing.T) {
	if _, err := Load(Sources{Args: []string{"--help"}}); !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("Load: %v", err)
	}
}

func TestSettingsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Settings() {
		for _, name := range append([]string{s.Name, s.Env}, s.Aliases...) {
			if seen[name] {
				t.Errorf("%s is used twice", name)
			}
			seen[name] = true
		}
		if s.Doc == "" || s.set == nil || !strings.HasPrefix(s.Env, "HATCH_") {
			t.Errorf("%s lacks its documentation, its parser or the prefix of its variable", s.Name)
		}
		if !strings.Contains(Reference(), "`"+s.Env+"`") {
			t.Errorf("%s is not in the reference", s.Name)
		}
	}
}

// TestSampleFile checks that the sample file shows all settings with their defaults: it
// loads, and it changes nothing when all its lines are uncommented.
func TestSampleFile(t *testing.T) {
	const sample = "../../packaging/hatchd.yaml"
	plain := load(t, Sources{Executable: "/x/hatchd"})
	if got := load(t, Sources{DefaultFile: sample, Executable: "/x/hatchd"}); len(got.Warnings) > 0 || !sameValues(got, plain) {
		t.Errorf("the sample changes something: %+v", got.Values())
	}
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	var uncommented strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") && !strings.HasPrefix(line, "##") {
			uncommented.WriteString(line[1:])
		}
	}
	for _, s := range Settings() {
		if !strings.Contains("\n"+uncommented.String(), "\n"+s.Name+":") {
			t.Errorf("the sample does not show %s", s.Name)
		}
	}
	if got := load(t, Sources{DefaultFile: write(t, uncommented.String()), Executable: "/x/hatchd"}); !sameValues(got, plain) {
		t.Errorf("the sample shows other defaults: %+v", got.Values())
	}
}

func sameValues(a, b Config) bool {
	va, vb := a.Values(), b.Values()
	for i := range va {
		if va[i].Value != vb[i].Value {
			return false
		}
	}
	return true
}

func FuzzParseYAML(f *testing.F) {
	for _, seed := range []string{"", "a: 1", "a: [1, 2]", "a: {b: c}", "- x", "a: &x [1]\nb: *x", "<<: {a: 1}", "a: ~"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		values, err := parseYAML(text)
		if err != nil && values != nil {
			t.Errorf("values beside an error: %v", values)
		}
	})
}

func TestDebianMirror(t *testing.T) {
	for raw, want := range map[string]int{
		"https://mirror.example.org/debian":                                            1,
		"http://mirror.example.org/debian, https://mirror.example.org/debian-security": 2,
	} {
		if c := load(t, Sources{Environ: []string{"HATCH_DEBIAN_MIRROR=" + raw}}); len(c.DebianMirrors) != want || c.DebianMirrors[0] != strings.Split(raw, ",")[0] {
			t.Errorf("%s: got %q", raw, c.DebianMirrors)
		}
	}
	for _, raw := range []string{"mirror.example.org/debian", "ftp://mirror.example.org", "https://a.example.org/x y", "https://a.example.org,https://b.example.org,https://c.example.org", "https://a.example.org,"} {
		if errs := loadErrors(t, Sources{Environ: []string{"HATCH_DEBIAN_MIRROR=" + raw}}); !strings.Contains(errs.Error(), "HATCH_DEBIAN_MIRROR") {
			t.Errorf("%s: got %v", raw, errs)
		}
	}
}

func TestOrigins(t *testing.T) {
	for raw, want := range map[string]string{
		"": "", "*": "*", "https://Console.example.org/": "https://console.example.org", "http://localhost:3000, https://a.b": "http://localhost:3000 https://a.b",
	} {
		if got := strings.Join(load(t, Sources{Environ: []string{"HATCH_CORS_ORIGINS=" + raw}}).CORSOrigins, " "); got != want {
			t.Errorf("%q: %q, want %q", raw, got, want)
		}
	}
	for _, raw := range []string{"example.org", "https://*.example.org", "https://a.b/c", "ftp://a.b", "https://a.b,*", "null", "https://", "https://u@a.b", ","} {
		if f := loadErrors(t, Sources{Environ: []string{"HATCH_CORS_ORIGINS=" + raw}}); len(f) != 1 {
			t.Errorf("%q: %v", raw, f)
		}
	}
}

func TestTLSNeedsACertificate(t *testing.T) {
	for want, environ := range map[string][]string{
		"needs a certificate":    {"HATCH_TLS_ADDR=:443"},
		"must be set together":   {"HATCH_TLS_ADDR=:443", "HATCH_TLS_CERT=/cert.pem"},
		"for a certificate":      {"HATCH_ACME_EMAIL=admin@example.org"},
		"HATCH_ACME_DNS_KEY":     {"HATCH_TLS_ADDR=:443", "HATCH_ACME_EMAIL=admin@example.org", "HATCH_ACME_DNS_SERVER=192.0.2.1:53"},
		"an email address":       {"HATCH_TLS_ADDR=:443", "HATCH_ACME_EMAIL=admin"},
		"begins with https://":   {"HATCH_TLS_ADDR=:443", "HATCH_ACME_EMAIL=admin@example.org", "HATCH_ACME_CA=http://ca"},
		"secret in base64":       {"HATCH_TLS_ADDR=:443", "HATCH_ACME_EMAIL=admin@example.org", "HATCH_ACME_DNS_SERVER=192.0.2.1:53", "HATCH_ACME_DNS_KEY=k:se_cret"},
		"an address with a port": {"HATCH_PROXY_ADDR=on"},
	} {
		if f := loadErrors(t, Sources{Environ: environ}); !strings.Contains(f.Error(), want) || strings.Contains(f.Error(), "se_cret") {
			t.Errorf("%v: got %v", environ, f)
		}
	}
	got := load(t, Sources{Environ: []string{"HATCH_TLS_ADDR=:443", "HATCH_ACME_EMAIL=admin@example.org", "HATCH_PROXY_ADDR=off"}})
	if got.ACMEEmail != "admin@example.org" || got.ProxyAddr != "" || got.ACMECA != "" {
		t.Errorf("got %+v", got)
	}
}
