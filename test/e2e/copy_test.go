//go:build system

package e2e

import (
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
)

// testCopies copies what only hatch cp -a keeps into a guest and back, a sparse file, and
// a compressed archive.
func testCopies(t *testing.T, w *world, id string) {
	v := api.VM{ID: id}
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw+ep
	program := filepath.Join(from, "program")
	for _, err := range []error{
		os.Mkdir(from, 0o700), os.Chmod(from, 0o777|os.ModeSticky), os.WriteFile(program, []byte("x"), 0o700),
		unix.Setxattr(program, "security.capability", []byte(capability), 0), unix.Setxattr(program, "user.note", []byte("kept"), 0),
		os.Link(program, filepath.Join(from, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.hatch(t, "cp", "-a", from, id+":/root/copied")
	w.hatch(t, "cp", "-a", id+":/root/copied", to)
	if st, err := os.Stat(to); err != nil || st.Mode() != 0o777|os.ModeSticky|os.ModeDir {
		t.Errorf("the directory is %v, %v", st, err)
	}
	requireAttributes(t, filepath.Join(to, "program"), capability)
	one, err := os.Stat(filepath.Join(to, "program"))
	if two, linkErr := os.Stat(filepath.Join(to, "link")); err != nil || linkErr != nil || !os.SameFile(one, two) {
		t.Errorf("hard links: %v, %v", err, linkErr)
	}
	w.hatch(t, "cp", "-a", program, id+":/root/single")
	w.hatch(t, "cp", "-a", id+":/root/single", to)
	requireAttributes(t, filepath.Join(to, "single"), capability)

	w.inside(t, v, "truncate -s 300M /root/holes 2>/dev/null || dd if=/dev/zero of=/root/holes bs=1 count=0 seek=300M")
	w.inside(t, v, "mkdir -p /root/sparse && mv /root/holes /root/sparse/ && echo end >>/root/sparse/holes")
	w.hatch(t, "cp", id+":/root/sparse/holes", to)
	w.hatch(t, "cp", id+":/root/sparse", to)
	for _, name := range []string{"holes", "sparse/holes"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(to, name), &st); err != nil || st.Size != 300<<20+4 || st.Blocks > 1<<10 {
			t.Errorf("%s has %d bytes in %d blocks, %v", name, st.Size, st.Blocks, err)
		}
	}

	archive, err := os.Create(filepath.Join(to, "archive.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	packed := gzip.NewWriter(archive)
	_, err = fmt.Fprint(packed, w.hatch(t, "cp", id+":/root/copied", "-"))
	if err != nil || packed.Close() != nil || archive.Close() != nil {
		t.Fatalf("cannot write an archive: %v", err)
	}
	w.inside(t, v, "mkdir /root/unpacked")
	upload := w.command(t.Context(), "cp", "-", id+":/root/unpacked")
	if upload.Stdin, err = os.Open(archive.Name()); err != nil {
		t.Fatal(err)
	}
	if out, err := upload.CombinedOutput(); err != nil {
		t.Fatalf("a compressed archive: %v: %s", err, out)
	}
	w.inside(t, v, "cmp /root/unpacked/copied/program /root/copied/program")
}

func requireAttributes(t *testing.T, path, capability string) {
	t.Helper()
	value := make([]byte, 100)
	n, err := unix.Getxattr(path, "security.capability", value)
	if err != nil || string(value[:n]) != capability {
		t.Errorf("%s has the capabilities %q, %v", path, value[:max(n, 0)], err)
	}
	n, err = unix.Getxattr(path, "user.note", value)
	if err != nil || string(value[:n]) != "kept" {
		t.Errorf("%s has the note %q, %v", path, value[:max(n, 0)], err)
	}
}
