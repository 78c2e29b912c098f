package arch

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// program lists the packages that a program may link. Names of this module are
// relative to the repository; a name that ends in "/..." includes all below it.
type program struct {
	dir  string   // of its main package
	ours []string // the packages of this module that it links; nil: any but those in not
	not  []string
}

// tests lists packages that no program may link: Go's testing, and packages for tests.
var tests = []string{"testing", "internal/vmm/vmmtest/...", "internal/store/storetest/...", "test/..."}

var programs = []program{
	{dir: "cmd/hatchd", not: append([]string{"internal/fake/..."}, tests...)},
	{dir: "cmd/hatchd-fake", not: append([]string{"internal/daemon/linux", "internal/vmm/qemu/...", "internal/vmm/firecracker/..."}, tests...)},
	{dir: "cmd/hatch", ours: []string{"api", "client", "cmd/hatch/..."}, not: tests},
	{
		dir:  "cmd/hatch-agent",
		ours: []string{"cmd/hatch-agent", "internal/agent/...", "internal/backoff", "internal/guest/wire", "internal/logkey"},
		not:  append([]string{"net/http", "crypto/tls", "encoding/xml", "text/template"}, tests...),
	},
}

// agentLimit bounds hatch-agent in bytes: it is part of the initramfs of every
// guest, and is read and unpacked at every boot.
const agentLimit = 6 << 20

func TestAgentStaysSmall(t *testing.T) {
	program := filepath.Join(t.TempDir(), "hatch-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", program, "./cmd/hatch-agent") // as in the Makefile
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build hatch-agent: %v\n%s", err, out)
	}
	built, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if built.Size() > agentLimit {
		t.Errorf("hatch-agent has %d bytes, more than %d; `go tool nm -size -sort size` lists the largest symbols", built.Size(), agentLimit)
	}
}

func TestProgramsLinkNoMoreThanTheyNeed(t *testing.T) {
	for _, p := range programs {
		t.Run(p.dir, func(t *testing.T) {
			for _, linked := range dependencies(t, p.dir) {
				name, ours := strings.CutPrefix(linked, module+"/")
				switch {
				case matches(p.not, name):
					t.Errorf("%s links %s; `go list -deps -json ./%s` shows the import", p.dir, linked, p.dir)
				case ours && p.ours != nil && !matches(p.ours, name):
					t.Errorf("%s links %s; of this module it may link %s", p.dir, linked, strings.Join(p.ours, ", "))
				}
			}
		})
	}
}

// dependencies lists the packages that the program links, including itself.
func dependencies(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "./"+dir)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot list what %s links: %v", dir, err)
	}
	list := strings.Fields(string(out))
	if !slices.Contains(list, module+"/"+dir) {
		t.Fatalf("%s is not among the packages that it links: the list is broken", dir)
	}
	return list
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		above, below := strings.CutSuffix(pattern, "/...")
		return name == above || below && strings.HasPrefix(name, above+"/")
	})
}

func TestMatches(t *testing.T) {
	patterns := []string{"testing", "internal/fake/..."}
	for name, want := range map[string]bool{
		"testing": true, "testing/iotest": false, "internal/fake": true, "internal/fake/driver": true, "internal/fakes": false,
	} {
		if got := matches(patterns, name); got != want {
			t.Errorf("matches(%q, %q) = %v, want %v", patterns, name, got, want)
		}
	}
}
