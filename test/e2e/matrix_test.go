//go:build system

package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var updateMatrix = flag.Bool("update-matrix", false, "write the table of what was booted into the how-to")

// matrixGuide has the table between two marks.
const (
	matrixGuide = "docs/how-to/own-kernel-and-rootfs.md"
	matrixBegin = "<!-- begin: what boots -->\n"
	matrixEnd   = "<!-- end: what boots -->\n"
)

// fileSystems are the formats of a root, and the commands that make one of a directory.
var fileSystems = []struct{ name, make string }{
	{"ext4", `mke2fs -q -t ext4 -d "$1" "$2" 128M`},
	{"squashfs", `mksquashfs "$1" "$2" -quiet -no-progress`},
	{"erofs", `mkfs.erofs -zlz4hc "$2" "$1"`},
	{"xfs", `truncate -s 320M "$2" && mkfs.xfs -q -p "$3" "$2"`},
	{"btrfs", `truncate -s 160M "$2" && mkfs.btrfs -q --rootdir "$1" "$2"`},
}

// matrixKernels are Debian's kernels by their directory in the tests' assets.
var matrixKernels = []struct{ name, dir string }{{"Debian's cloud kernel", ""}, {"Debian's ordinary kernel", "ordinary"}}

// testMatrix boots each format of root file system with each kernel of Debian, shared by
// its VMs and as a private copy, and compares what it sees with the documentation.
func testMatrix(t *testing.T, w *world) {
	tree := w.minimalTree(t)
	cells := map[string][]string{} // by format
	for _, kernel := range matrixKernels {
		own := w.mustShare(t, filepath.Join(repository(), ".cache", "test", kernel.dir, "vmlinuz"), "matrix/vmlinuz")
		whole := filepath.Join(repository(), ".cache", "test", kernel.dir, "modules")
		for _, modules := range []string{w.mustShare(t, whole, "matrix/whole"), w.mustShare(t, withoutOverlay(t, whole), "matrix/few")} {
			for _, fs := range fileSystems {
				root := w.mustShare(t, filepath.Join(tree, fs.name), "matrix/root")
				body := api.CreateImage{KernelPath: own, RootfsPath: root, ModulesPath: modules}
				t.Run(fs.name+" on "+kernel.name+", modules "+filepath.Base(modules), func(t *testing.T) {
					cells[fs.name] = append(cells[fs.name], w.bootMatrix(t, body))
				})
			}
		}
	}
	for _, seen := range cells {
		if len(seen) < 2*len(matrixKernels) {
			return // one has failed, or -run asks for some of them only
		}
	}
	requireTable(t, cells)
}

// minimalTree makes the minimal image's root again, in each format, in a directory.
func (w *world) minimalTree(t *testing.T) string {
	t.Helper()
	base, err := w.client.GetImage(t.Context(), minimalID)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tree, prototype := filepath.Join(dir, "tree"), filepath.Join(dir, "prototype")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	onHost(t, `debugfs -R "rdump / $2" "$1"`, base.RootfsPath, tree)
	var xfs bytes.Buffer
	if err := writePrototype(&xfs, tree); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(prototype, xfs.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, fs := range fileSystems {
		onHost(t, fs.make, tree, filepath.Join(dir, fs.name), prototype)
	}
	return dir
}

func onHost(t *testing.T, script string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "sh", append([]string{"-euc", script, "sh"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// writePrototype describes a tree to mkfs.xfs, which cannot read a directory.
func writePrototype(b *bytes.Buffer, tree string) error {
	fmt.Fprint(b, "/\n0 0\n")
	return writeEntry(b, tree)
}

func writeEntry(b *bytes.Buffer, path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	mode := fmt.Sprintf("--%03o 0 0", st.Mode().Perm())
	switch {
	case st.Mode().IsRegular():
		fmt.Fprintf(b, "-%s %s\n", mode, path)
		return nil
	case st.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(path)
		fmt.Fprintf(b, "l%s %s\n", mode, target)
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is neither a file, a directory nor a link", path)
	}
	fmt.Fprintf(b, "d%s\n", mode)
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		fmt.Fprintf(b, "%s ", e.Name())
		err = errors.Join(err, writeEntry(b, filepath.Join(path, e.Name())))
	}
	fmt.Fprint(b, "$\n")
	return err
}

// withoutOverlay copies a kernel's modules without the one that a shared root needs.
func withoutOverlay(t *testing.T, modules string) string {
	t.Helper()
	few := filepath.Join(t.TempDir(), "modules")
	onHost(t, `cp --archive "$1" "$2" && sed -i '/\/overlay\.ko/d' "$2/modules.dep"`, modules, few)
	return few
}

// bootMatrix boots an image, writes to its root, and returns what the root is; or says
// that the image is refused.
func (w *world) bootMatrix(t *testing.T, body api.CreateImage) string {
	t.Helper()
	image, err := w.client.CreateImage(t.Context(), body)
	if client.IsInvalid(err) && strings.Contains(err.Error(), "overlay") {
		return "refused"
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.client.DeleteImage(context.Background(), image.ID); err != nil {
			t.Error(err)
		}
	})
	vm := minimal()
	vm.ImageID, vm.MemMiB, vm.DiskMiB = image.ID, new(256), new(512) // the ordinary kernel needs the memory
	v := w.create(t, vm, client.CreateOptions{Wait: "ready", WaitTimeout: 2 * time.Minute})
	root := w.inside(t, v, "echo kept >/kept && sync && awk '$2 == \"/\" { root = $3 } END { print root }' /proc/mounts")
	if root == "overlay" {
		return "shared"
	}
	return "private copy, " + root
}

// requireTable compares the table in the documentation with what was seen, or writes it.
func requireTable(t *testing.T, cells map[string][]string) {
	t.Helper()
	var table strings.Builder
	head, rule := "| Root file system |", "|---|"
	for _, kernel := range matrixKernels {
		head += " " + kernel.name + " | without `overlay` |"
		rule += "---|---|"
	}
	fmt.Fprintf(&table, "%s\n%s\n", head, rule)
	for _, fs := range fileSystems {
		fmt.Fprintf(&table, "| %s | %s |\n", fs.name, strings.Join(cells[fs.name], " | "))
	}
	path := filepath.Join(repository(), matrixGuide)
	guide, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begun := strings.Cut(string(guide), matrixBegin)
	documented, after, ended := strings.Cut(rest, matrixEnd)
	switch {
	case !begun || !ended:
		t.Fatalf("%s has no table of what boots", matrixGuide)
	case *updateMatrix:
		if err := os.WriteFile(path, []byte(before+matrixBegin+table.String()+matrixEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case documented != table.String():
		t.Errorf("%s says\n%s\nbut this was seen (-update-matrix writes it):\n%s", matrixGuide, documented, table.String())
	}
}
