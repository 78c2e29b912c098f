package arch

import (
	"slices"
	"strings"
	"testing"
)

// layer is a row of packages that may import the same things of this module.
type layer struct {
	name     string
	packages []string // a trailing /... takes in all below
	may      []string // layers and packages; itself is not among them unless named
}

// layers is the shape, outermost first. An arrow never points outwards:
// cmd, daemon → doors → nouns → contracts → words. Adapters know the nouns'
// types, and no door, no daemon and no other adapter.
var layers = []layer{
	{"hatchd", []string{"cmd/hatchd"}, []string{"daemon", "tools", "config", "words"}},
	{"daemon", []string{"internal/daemon"}, []string{"doors", "adapters", "tools", "nouns", "contracts", "config", "words", "wire types", "internal/guest/wire", "internal/vmm/vmmtest", "test guests"}},
	{"tools", []string{"internal/doctor"}, []string{"adapters", "words"}},
	{"doors", []string{"internal/server/..."}, []string{"nouns", "contracts", "words", "wire types"}},
	{"adapters", []string{"internal/host/...", "internal/vmm/qemu", "internal/vmm/firecracker", "internal/vmm/firecracker/release", "internal/store", "internal/guest", "internal/guest/initramfs", "internal/blob/...", "internal/webhook/sender"}, []string{"nouns", "contracts", "words", "internal/guest/wire"}},
	{"migrations", []string{"internal/store/migrations"}, nil},
	{"test drivers", []string{"internal/vmm/vmmtest/..."}, []string{"contracts", "words"}},
	{"test guests", []string{"internal/file/filetest", "internal/process/processtest"}, []string{"nouns", "words"}},
	{"agent", []string{"cmd/hatch-agent", "internal/agent/..."}, []string{"agent", "internal/guest/wire"}},
	{"agent protocol", []string{"internal/guest/wire"}, nil},
	{"config", []string{"internal/config"}, []string{"words", "internal/network"}},
	{"nouns", []string{
		"internal/vm", "internal/image/...", "internal/template", "internal/snapshot", "internal/network", "internal/route",
		"internal/volume", "internal/access", "internal/event", "internal/idle", "internal/process", "internal/file", "internal/webhook", "internal/warm",
	}, []string{"nouns", "contracts", "words"}},
	{"contracts", []string{"internal/vmm"}, []string{"words"}},
	{"words", []string{"internal/errs", "internal/id"}, nil},
	{"cli", []string{"cmd/hatch"}, []string{"client", "wire types"}},
	{"client", []string{"client"}, []string{"wire types"}},
	{"wire types", []string{"api"}, nil},
	{"shape", []string{"internal/arch"}, nil},
	{"tests", []string{"test/..."}, []string{"tests", "client", "wire types", "agent protocol"}},
}

// siblings are the imports between adapters that are wanted: one that puts
// several together, or a part of another's.
var siblings = map[string][]string{
	"internal/doctor":            {"internal/host/kvm", "internal/host/memory", "internal/vmm/firecracker/release"},
	"internal/host/link":         {"internal/host/bridge", "internal/host/dhcp", "internal/host/dns", "internal/host/nft"},
	"internal/host/disk":         {"internal/host/sparse"},
	"internal/host/memory":       {"internal/host/sparse"},
	"internal/host/snapshot":     {"internal/host/sparse"},
	"internal/store":             {"internal/store/migrations"},
	"internal/vmm/qemu":          {"internal/host/jail", "internal/host/kvm", "internal/host/mapping"},
	"internal/host/mapping":      {"internal/host/sparse"},
	"internal/vmm/firecracker":   {"internal/host/jail", "internal/host/kvm", "internal/host/sparse", "internal/vmm/firecracker/release"},
	"internal/vmm/vmmtest/probe": {"internal/vmm/vmmtest/testguest"},
	"test/bench":                 {"internal/vmm", "internal/vmm/firecracker", "internal/vmm/vmmtest/probe"}, // it measures the driver itself
}

// outside lists what packages of other modules, and of the standard library,
// a layer does without; the empty prefix stands for every other module.
var outside = map[string][]string{
	"wire types": {""},
	"words":      {""},
	"contracts":  {"", "net/http", "database/sql", "os/exec"},
	"nouns":      {"net/http", "database/sql", "os/exec", "golang.org/x/sys", "github.com/vishvananda", "github.com/google/nftables", "github.com/jmoiron", "github.com/danielgtaylor"},
	"doors":      {"database/sql", "os/exec", "github.com/vishvananda", "github.com/google/nftables", "github.com/jmoiron"},
	"client":     {"os/exec", "log", "log/slog", "github.com/spf13"},
}

func TestEachPackageHasALayer(t *testing.T) {
	for _, p := range packages(t) {
		if _, ok := layerOf(p.dir); !ok {
			t.Errorf("%s: no layer has this package; add it to the table in internal/arch/layers_test.go, or move it below a package that is there", p.dir)
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

func TestLayersKeepOutOfOthersBusiness(t *testing.T) {
	for _, p := range packages(t) {
		from, _ := layerOf(p.dir)
		for _, f := range p.code() {
			for _, imported := range f.imports() {
				if forbidden(outside[from.name], imported) {
					t.Errorf("%s: imports %s, which the layer %q does without; put what needs it into an adapter below internal/host, internal/store or internal/server",
						f.path, imported, from.name)
				}
			}
		}
	}
}

// TestPublicPackagesKeepOutOfInternal looks at tests too: what users import
// must be testable without the daemon's insides.
func TestPublicPackagesKeepOutOfInternal(t *testing.T) {
	public := []string{"api", "client", "cmd/hatch"}
	for _, p := range packages(t) {
		if !slices.Contains(public, p.dir) {
			continue
		}
		for _, f := range p.files {
			for _, imported := range f.imports() {
				if strings.HasPrefix(imported, module+"/internal/") {
					t.Errorf("%s: imports %s; %s speaks to hatchd through the API only", f.path, imported, p.dir)
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

// has reports whether the package is of this layer. A package that some layer
// names itself does not fall under another's "/...".
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
		{[]string{""}, "gopkg.in/yaml.v3", true},
		{[]string{"net/http"}, "net/http/httptest", true},
		{[]string{"net/http"}, "net/httpx", false},
		{nil, "net/http", false},
	} {
		if got := forbidden(c.prefixes, c.imported); got != c.want {
			t.Errorf("forbidden(%q, %q) = %v, want %v", c.prefixes, c.imported, got, c.want)
		}
	}
}
