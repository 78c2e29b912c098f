package recipe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

const gpg = "/usr/share/keyrings/debian-archive-keyring.gpg"

// writeHost makes a host's files, by path.
func writeHost(t *testing.T, files map[string]string) hostFiles {
	t.Helper()
	h := hostFiles{t.TempDir()}
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(h.path(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.path(path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

const docker = `Types: deb
URIs: https://download.example.com/linux/debian
Suites: bookworm
Components: stable
Signed-By: /etc/apt/keyrings/docker.asc
`

func TestDebianLines(t *testing.T) {
	for name, tc := range map[string]struct {
		files   map[string]string
		mirrors []string
		want    []string
	}{
		"Debian 12, deb822": {
			files: map[string]string{
				"/etc/apt/sources.list.d/debian.sources": `Types: deb deb-src
# a comment
URIs: http://deb.example.org/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.example.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example.org/debian
Suites: bookworm
Components: main
Enabled: no
`,
				"/etc/apt/sources.list.d/docker.sources": docker,
			},
			want: []string{
				"deb [signed-by=" + gpg + "] http://deb.example.org/debian bookworm main contrib",
				"deb [signed-by=" + gpg + "] http://deb.example.org/debian bookworm-updates main contrib",
				"deb [signed-by=" + gpg + "] http://deb.example.org/debian-security bookworm-security main",
			},
		},
		"Debian 12, one line each": {
			files: map[string]string{
				"/etc/apt/sources.list": `# deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb http://deb.example.org/debian/ bookworm main non-free-firmware # the archive
deb-src http://deb.example.org/debian/ bookworm main
deb [arch=amd64 check-valid-until=no] http://deb.example.org/debian-security/ bookworm-security main
`,
				"/etc/apt/sources.list.d/pgdg.list": "deb [signed-by=/usr/share/keyrings/pgdg.gpg] https://apt.example.com/pub/repos/apt bookworm-pgdg main\n",
				"/etc/apt/sources.list.d/corp.list": "deb [signed-by=/usr/share/keyrings/corp.gpg] https://apt.example.com bookworm main\n",
			},
			want: []string{
				"deb http://deb.example.org/debian/ bookworm main non-free-firmware",
				"deb [check-valid-until=no] http://deb.example.org/debian-security/ bookworm-security main",
			},
		},
		"Debian 12, cloud image": {
			files: map[string]string{
				"/etc/apt/sources.list": "# See /etc/apt/sources.list.d/debian.sources\n",
				"/etc/apt/sources.list.d/debian.sources": `Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: bookworm-security
Components: main
`,
				"/etc/apt/mirrors/debian.list":          "# mirrors\nhttps://deb.example.org/debian\tpriority:1\nhttps://second.example.org/debian\n",
				"/etc/apt/mirrors/debian-security.list": "https://deb.example.org/debian-security\n",
			},
			want: []string{
				"deb https://deb.example.org/debian bookworm main",
				"deb https://deb.example.org/debian bookworm-updates main",
				"deb https://deb.example.org/debian-security bookworm-security main",
			},
		},
		"a hoster's mirror": {
			files: map[string]string{
				"/etc/apt/sources.list": "deb https://mirror.example.net/debian/packages bookworm main\n" +
					"deb https://mirror.example.net/debian/packages bookworm-updates main\n" +
					"deb https://mirror.example.net/debian/security bookworm-security main\n",
			},
			want: []string{
				"deb https://mirror.example.net/debian/packages bookworm main",
				"deb https://mirror.example.net/debian/packages bookworm-updates main",
				"deb https://mirror.example.net/debian/security bookworm-security main",
			},
		},
		"a mirror known by its suite only": {
			files: map[string]string{"/etc/apt/sources.list": "deb http://cache.example.net/d12 bookworm main\n"},
			want:  []string{"deb http://cache.example.net/d12 bookworm main"},
		},
		"a mirror known by its Release file, and another archive": {
			files: map[string]string{
				"/etc/apt/sources.list": "deb http://cache.example.net/some_repo/ oldstable main\ndeb http://apt.example.com/debian bookworm main\n",
				"/var/lib/apt/lists/cache.example.net_some%5frepo_dists_oldstable_InRelease": "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nCodename: bookworm\n",
				"/var/lib/apt/lists/apt.example.com_debian_dists_bookworm_InRelease":         "Origin: Example Inc.\n",
				gpg: "keys",
			},
			want: []string{"deb [signed-by=" + gpg + "] http://cache.example.net/some_repo/ bookworm main"},
		},
		"Debian 13": {
			files: map[string]string{
				"/etc/apt/sources.list.d/debian.sources": `Types: deb
URIs: http://deb.example.org/debian/
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-trixie-stable.gpg

Types: deb
URIs: http://security.example.org/debian-security/
Suites: trixie-security
Components: main
Signed-By:
 /usr/share/keyrings/debian-archive-keyring.pgp
`,
				"/usr/share/keyrings/debian-archive-keyring.pgp": "keys",
			},
			want: []string{
				"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.pgp] http://deb.example.org/debian/ bookworm main non-free-firmware",
				"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.pgp] http://deb.example.org/debian/ bookworm-updates main non-free-firmware",
				"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.pgp] http://security.example.org/debian-security/ bookworm-security main",
			},
		},
		"Debian 12 and 13": {
			files: map[string]string{
				"/etc/apt/sources.list": "deb http://new.example.org/debian trixie main\ndeb http://old.example.org/debian bookworm main\n",
			},
			want: []string{"deb http://old.example.org/debian bookworm main"},
		},
		"Ubuntu with a mirror": {
			files:   map[string]string{"/etc/apt/sources.list.d/ubuntu.sources": ubuntu, gpg: "keys"},
			mirrors: []string{"https://mirror.example.org/debian", "https://mirror.example.org/debian-security"},
			want: []string{
				"deb [signed-by=" + gpg + "] https://mirror.example.org/debian bookworm main",
				"deb [signed-by=" + gpg + "] https://mirror.example.org/debian bookworm-updates main",
				"deb [signed-by=" + gpg + "] https://mirror.example.org/debian-security bookworm-security main",
			},
		},
		"Debian 12 with a mirror": {
			files: map[string]string{
				"/etc/apt/sources.list": "deb http://deb.example.org/debian bookworm main\ndeb http://deb.example.org/debian-security bookworm-security main\n", gpg: "keys",
			},
			mirrors: []string{"https://mirror.example.org/debian"},
			want: []string{
				"deb [signed-by=" + gpg + "] https://mirror.example.org/debian bookworm main",
				"deb [signed-by=" + gpg + "] https://mirror.example.org/debian bookworm-updates main",
				"deb http://deb.example.org/debian-security bookworm-security main",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := writeHost(t, tc.files).debianLines(tc.mirrors)
			if want := strings.Join(tc.want, "\n") + "\n"; err != nil || got != want {
				t.Errorf("%v\ngot\n%swant\n%s", err, got, want)
			}
		})
	}
}

const ubuntu = `Types: deb
URIs: http://archive.example.com/ubuntu/
Suites: noble noble-updates noble-backports
Components: main universe restricted multiverse
Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg

Types: deb
URIs: http://security.example.com/ubuntu/
Suites: noble-security
Components: main universe restricted multiverse
Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg
`

func TestHostsWithoutDebian(t *testing.T) {
	trixie := "deb http://deb.example.org/debian trixie main\n"
	for name, tc := range map[string]struct {
		files   map[string]string
		mirrors []string
		code    string
		hint    string
	}{
		"nothing":              {code: "no_package_sources", hint: "HATCH_DEBIAN_MIRROR"},
		"Ubuntu":               {files: map[string]string{"/etc/apt/sources.list.d/ubuntu.sources": ubuntu}, code: "no_package_sources", hint: "HATCH_DEBIAN_MIRROR"},
		"archives of others":   {files: map[string]string{"/etc/apt/sources.list.d/docker.sources": docker}, code: "no_package_sources", hint: "HATCH_DEBIAN_MIRROR"},
		"security only":        {files: map[string]string{"/etc/apt/sources.list": "deb http://deb.example.org/debian-security bookworm-security main\n"}, code: "no_package_sources", hint: "HATCH_DEBIAN_MIRROR"},
		"no keys":              {files: map[string]string{"/etc/apt/sources.list": trixie}, code: KeyringMissing, hint: "debian-archive-keyring"},
		"a mirror and no keys": {mirrors: []string{"https://mirror.example.org/debian"}, code: KeyringMissing, hint: "debian-archive-keyring"},
		"an empty list of mirrors": {
			files: map[string]string{"/etc/apt/sources.list": "deb mirror+file:/etc/apt/m.list bookworm main\n", "/etc/apt/m.list": "# none\n"},
			code:  "no_package_sources", hint: "/etc/apt/m.list",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := writeHost(t, tc.files).debianLines(tc.mirrors)
			known, ok := errs.As(err)
			if !ok || known.Kind != errs.Unsupported || known.Code != tc.code || !strings.Contains(known.Hint, tc.hint) {
				t.Errorf("got %q, %v, %+v", got, err, known)
			}
		})
	}
}
