package arch

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// layer is a set of packages with the same permitted imports of this module.
type layer struct {
	name     string
	packages []string // a trailing /... includes all packages below
	may      []string // layers and packages; its own layer only if named
}

// layers is the table of layers, outermost first. Imports never point outwards:
// cmd, daemon → doors → nouns → contracts → words. Adapters know the nouns'
// types, and no door, no daemon and no other adapter.
var layers = []layer{
	{"hatchd", []string{"cmd/hatchd"}, []string{"daemon", "tools", "config", "words"}},
	{"hatchd-fake", []string{"cmd/hatchd-fake"}, []string{"daemon", "fake hosts", "config"}},
	{"daemon", []string{"internal/daemon/..."}, []string{"daemon", "doors", "admission", "adapters", "tools", "nouns", "contracts", "config", "words", "wire types", "internal/guest/wire"}},
	{"fake hosts", []string{"internal/fake/host"}, []string{"daemon", "fakes", "adapters", "nouns", "contracts", "words"}},
	{"tools", []string{"internal/doctor"}, []string{"adapters", "words"}},
	{"admission", []string{"internal/server/admission"}, []string{"words"}},
	{"doors", []string{"internal/server/..."}, []string{"admission", "nouns", "contracts", "words", "wire types"}},
	{"adapters", []string{"internal/host/...", "internal/vmm/process", "internal/vmm/qemu", "internal/vmm/firecracker", "internal/vmm/firecracker/release", "internal/store", "internal/guest", "internal/guest/initramfs", "internal/webhook/sender", "internal/access/issuer"}, []string{"nouns", "contracts", "words", "internal/guest/wire"}},
	{"stores for tests", []string{"internal/store/storetest/..."}, []string{"internal/store"}},
	{"migrations", []string{"internal/store/migrations"}, nil},
	{"conformance", []string{"internal/vmm/vmmtest/..."}, []string{"contracts", "words"}},
	{"fakes", []string{"internal/fake/..."}, []string{"fakes", "internal/host/disk", "internal/host/rootfs", "nouns", "contracts", "words"}},
	{"agent", []string{"cmd/hatch-agent", "internal/agent/..."}, []string{"agent", "internal/guest/wire", "internal/backoff", "internal/logkey"}},
	{"agent protocol", []string{"internal/guest/wire"}, []string{"internal/backoff"}},
	{"config", []string{"internal/config"}, []string{"words", "internal/network"}},
	{"nouns", []string{
		"internal/vm/...", "internal/idle", "internal/reach", "internal/machine", "internal/image/...", "internal/template", "internal/route", "internal/snapshot", "internal/network", "internal/disk",
		"internal/access", "internal/quota", "internal/audit", "internal/event", "internal/idempotency", "internal/process", "internal/file", "internal/webhook", "internal/warm", "internal/secret", "internal/sshca",
	}, []string{"nouns", "contracts", "words"}},
	{"contracts", []string{"internal/vmm"}, []string{"words"}},
	{"words", []string{"internal/backoff", "internal/errs", "internal/id", "internal/logkey"}, nil},
	{"cli", []string{"cmd/hatch"}, []string{"client", "wire types", "cli parts"}},
	{"cli parts", []string{"cmd/hatch/internal/..."}, []string{"client", "wire types"}},
	{"client", []string{"client"}, []string{"wire types"}},
	{"wire types", []string{"api"}, nil},
	{"shape", []string{"internal/arch"}, nil},
	{"tests", []string{"test/..."}, []string{"tests", "client", "wire types", "agent protocol"}},
}

// siblings are the permitted imports between adapters, and between doors: of one that
// combines several, or of a part of another.
var siblings = map[string][]string{
	"internal/server/envd":       {"internal/server/connect"},
	"internal/doctor":            {"internal/host/kvm", "internal/host/memory", "internal/host/owned", "internal/host/space", "internal/vmm/firecracker/release"},
	"internal/host/backup":       {"internal/host/sparse"},
	"internal/host/link":         {"internal/host/bridge", "internal/host/dhcp", "internal/host/dns", "internal/host/nft"},
	"internal/host/capacity":     {"internal/host/space"},
	"internal/host/disk":         {"internal/host/space", "internal/host/sparse"},
	"internal/host/memory":       {"internal/host/space", "internal/host/sparse"},
	"internal/host/rootfs":       {"internal/host/owned", "internal/host/space", "internal/host/sparse"},
	"internal/host/snapshot":     {"internal/host/space", "internal/host/sparse"},
	"internal/store":             {"internal/store/migrations"},
	"internal/vmm/qemu":          {"internal/vmm/process", "internal/host/jail", "internal/host/kvm", "internal/host/mapping"},
	"internal/host/mapping":      {"internal/host/sparse"},
	"internal/vmm/process":       {"internal/host/jail"},
	"internal/vmm/firecracker":   {"internal/vmm/process", "internal/host/jail", "internal/host/kvm", "internal/host/sparse", "internal/vmm/firecracker/release"},
	"internal/vmm/vmmtest/probe": {"internal/vmm/vmmtest/testguest"},
	"test/bench":                 {"internal/vmm", "internal/vmm/firecracker", "internal/vmm/vmmtest/probe"}, // it measures the driver itself
}

// outside lists the packages of other modules and of the standard library that a
// layer must not import; the empty prefix means every other module.
var outside = map[string][]string{
	"wire types": {""},
	"words":      {""},
	"contracts":  {"", "net/http", "database/sql", "os/exec"},
	"nouns":      {"net/http", "database/sql", "os/exec", "syscall", "golang.org/x/sys", "github.com/vishvananda", "github.com/google/nftables", "github.com/jmoiron", "github.com/danielgtaylor"},
	"doors":      {"database/sql", "os/exec", "github.com/vishvananda", "github.com/google/nftables", "github.com/jmoiron"},
	"client":     {"os/exec", "log", "log/slog", "github.com/spf13"},
}

func TestEachPackageHasALayer(t *testing.T) {
	for _, p := range packages(t) {
		if _, ok := layerOf(p.dir); !ok {
			t.Errorf("%s: no layer has this package; add it to the table in internal/arch/layers_test.go, or move it below an existing package", p.dir)
		}
	}
}

func TestImportsPointInwards(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := layerOf(p.dir)
		if !ok {
			continue // reported by TestEachPackageHasALayer
		}
		for _, f := range p.code() {
			for _, imported := range f.imports() {
				to, ours := strings.CutPrefix(imported, module+"/")
				if ours && !from.mayImport(p.dir, to) {
					t.Errorf("%s: imports %s, which a package of the layer %q may not (it may: %s); declare the small interface you need and let internal/daemon supply it",
						f.path, to, from.name, strings.Join(from.may, ", "))
				}
			}
		}
	}
}

func TestForbiddenImports(t *testing.T) {
	for _, p := range packages(t) {
		from, _ := layerOf(p.dir)
		for _, f := range p.code() {
			for _, imported := range f.imports() {
				if forbidden(outside[from.name], imported) {
					t.Errorf("%s: imports %s, which the layer %q must not import; move the code into an adapter below internal/host, internal/store or internal/server",
						f.path, imported, from.name)
				}
			}
		}
	}
}

// TestNounsReadNoKernelFiles looks for paths in string literals: only adapters read
// kernel files.
func TestNounsReadNoKernelFiles(t *testing.T) {
	for _, p := range packages(t) {
		if from, _ := layerOf(p.dir); !slices.Contains([]string{"nouns", "contracts", "words"}, from.name) {
			continue
		}
		for _, f := range p.code() {
			ast.Inspect(f.ast, func(n ast.Node) bool {
				lit, ok := n.(*ast.BasicLit)
				if ok && (strings.HasPrefix(lit.Value, `"/proc/`) || strings.HasPrefix(lit.Value, `"/sys/`)) {
					t.Errorf("%s: names %s; read it in an adapter below internal/host and let internal/daemon supply the value", f.path, lit.Value)
				}
				return true
			})
		}
	}
}

// TestPublicPackagesKeepOutOfInternal checks tests, too: packages that users
// import must be testable without internal packages.
func TestPublicPackagesKeepOutOfInternal(t *testing.T) {
	public := []string{"api", "client", "cmd/hatch"}
	for _, p := range packages(t) {
		if !slices.Contains(public, p.dir) && !strings.HasPrefix(p.dir, "cmd/hatch/") {
			continue
		}
		for _, f := range p.files {
			for _, imported := range f.imports() {
				if strings.HasPrefix(imported, module+"/internal/") {
					t.Errorf("%s: imports %s; %s may use hatchd through the API only", f.path, imported, p.dir)
				}
			}
		}
	}
}

func layerOf(dir string) (layer, bool) {
	for _, l := range layers {
		if l.has(dir) {
			return l, true
		}
	}
	return layer{}, false
}

// has reports whether the package belongs to this layer. A package that a layer names
// explicitly does not belong to another layer's "/...".
func (l layer) has(dir string) bool {
	if slices.Contains(l.packages, dir) {
		return true
	}
	for _, pattern := range l.packages {
		above, all := strings.CutSuffix(pattern, "/...")
		if all && (dir == above || strings.HasPrefix(dir, above+"/")) && !named(dir) {
			return true
		}
	}
	return false
}

func named(dir string) bool {
	return slices.ContainsFunc(layers, func(l layer) bool { return slices.Contains(l.packages, dir) })
}

func (l layer) mayImport(from, to string) bool {
	if slices.Contains(siblings[from], to) || slices.Contains(l.may, to) {
		return true
	}
	target, ok := layerOf(to)
	return ok && slices.Contains(l.may, target.name)
}

func forbidden(prefixes []string, imported string) bool {
	for _, prefix := range prefixes {
		first, _, _ := strings.Cut(imported, "/")
		foreign := strings.Contains(first, ".") && !strings.HasPrefix(imported, module+"/")
		if prefix == "" && foreign || prefix != "" && (imported == prefix || strings.HasPrefix(imported, prefix+"/")) {
			return true
		}
	}
	return false
}

func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		prefixes []string
		imported string
		want     bool
	}{
		{[]string{""}, "net/http", false},
		{[]string{""}, module + "/api", false},
		{[]string{""}, "go.yaml.in/yaml/v3", true},
		{[]string{"net/http"}, "net/http/httptest", true},
		{[]string{"net/http"}, "net/httpx", false},
		{nil, "net/http", false},
	} {
		if got := forbidden(c.prefixes, c.imported); got != c.want {
			t.Errorf("forbidden(%q, %q) = %v, want %v", c.prefixes, c.imported, got, c.want)
		}
	}
}
