//go:build linux && amd64

package firecracker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string]string{
		"1.12.0": "1.12.0", "1.12.1\n\nmore": "1.12.1", "1.16.1": "1.16.1", "2.0.0-dev": "2.0.0",
		"1.11.9": "", "0.25.2": "", "": "", "1.12": "", "one": "",
	} {
		t.Run(text, func(t *testing.T) {
			v, err := parseVersion(text)
			if want == "" {
				if !errs.Is(err, errs.Unsupported) {
					t.Errorf("%q is parsed as %s (%v)", text, v, err)
				}
				return
			}
			if err != nil || v.String() != want {
				t.Errorf("%q is %s, %v", text, v, err)
			}
		})
	}
}

func TestKnownBugsOfVersions(t *testing.T) {
	for v, c := range map[version]struct {
		saves bool
		large string // type of a snapshot of 4 GiB
	}{
		{1, 12, 1}: {true, snapshotFull}, {1, 14, 9}: {true, snapshotFull}, {1, 15, 0}: {true, snapshotDiff},
		{1, 16, 0}: {false, snapshotDiff}, {1, 16, 1}: {false, snapshotDiff}, {1, 16, 2}: {true, snapshotDiff},
	} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			if err := checkSave(v); (err == nil) != c.saves {
				t.Errorf("%s: %v", v, err)
			}
			if got := snapshotType(v, 4096); got != c.large {
				t.Errorf("%s writes 4 GiB as %s", v, got)
			}
			if got := snapshotType(v, 2048); got != snapshotDiff {
				t.Errorf("%s writes 2 GiB as %s", v, got)
			}
		})
	}
}

func TestSpecsThatCannotRunAreRefused(t *testing.T) {
	good := vmm.Spec{ID: "vm_1", Dir: "/d", VCPUs: 2, MemMiB: 128, Disks: []vmm.Disk{{Serial: "root"}}}
	if err := checkSpec(good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*vmm.Spec){
		"an id with a hyphen":     func(s *vmm.Spec) { s.ID = "vm-1" },
		"a long id":               func(s *vmm.Spec) { s.ID = strings.Repeat("a", 65) },
		"an id that is a path":    func(s *vmm.Spec) { s.ID = "../vm" },
		"a relative directory":    func(s *vmm.Spec) { s.Dir = "d" },
		"three CPUs":              func(s *vmm.Spec) { s.VCPUs = 3 },
		"64 CPUs":                 func(s *vmm.Spec) { s.VCPUs = 64 },
		"little memory":           func(s *vmm.Spec) { s.MemMiB = 32 },
		"a serial with a comma":   func(s *vmm.Spec) { s.Disks = []vmm.Disk{{Serial: "a,b"}} },
		"a serial that is absent": func(s *vmm.Spec) { s.Disks = []vmm.Disk{{}} },
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			change(&s)
			if err := checkSpec(s); !errs.Is(err, errs.Unsupported) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

func TestJailIDsAreConvertedBack(t *testing.T) {
	if got := jailID("vm_a_1"); got != "vm-a-1" || idOfJail(got) != "vm_a_1" {
		t.Errorf("vm_a_1 is %s, and back %s", got, idOfJail(got))
	}
}

func TestEndingIsReadFromTheConsole(t *testing.T) {
	for text, want := range map[string]ending{
		"": endNone, "login: ": endNone,
		"[    9.1] reboot: Power down\r\n":                                                              endPowerOff,
		"[    9.1] reboot: System halted\r\n":                                                           endPowerOff,
		"[    9.1] reboot: Restarting system\r\n":                                                       endReset,
		"[    9.1] Kernel panic - not syncing: VFS\r\n[   9.2] Rebooting in 1 seconds..\r\n":            endPanic,
		"[    9.1] Kernel panic - not syncing: VFS\r\n[   9.2] reboot: Restarting system, it says \r\n": endPanic,
	} {
		t.Run(text, func(t *testing.T) {
			if got, line := endingOf(text); got != want || strings.ContainsAny(line, "\r\n") {
				t.Errorf("%q is %q, and the line %q", text, got, line)
			}
		})
	}
}

func TestCausesOfExits(t *testing.T) {
	known := jail.Status{Known: true}
	for name, c := range map[string]struct {
		console         string
		killed, pressed bool
		status          jail.Status
		want            vmm.ExitCause
	}{
		"a reset without a message":        {"", false, false, known, vmm.ExitReset},
		"a reset":                          {"reboot: Restarting system", false, false, known, vmm.ExitReset},
		"a power-off":                      {"reboot: Power down", false, false, known, vmm.ExitShutdown},
		"a reset after the power button":   {"reboot: Restarting system", false, true, known, vmm.ExitShutdown},
		"a panic":                          {"Kernel panic - not syncing: x", false, false, known, vmm.ExitPanic},
		"a crash":                          {"", false, false, jail.Status{Known: true, Code: 148}, vmm.ExitCrashed},
		"a signal":                         {"reboot: Power down", false, false, jail.Status{Known: true, Signal: unix.SIGSEGV}, vmm.ExitCrashed},
		"a kill":                           {"", true, false, jail.Status{Known: true, Signal: unix.SIGKILL}, vmm.ExitKilled},
		"a kill after a power-off":         {"reboot: Power down", true, false, known, vmm.ExitShutdown},
		"an unknown status":                {"", false, false, jail.Status{}, vmm.ExitUnknown},
		"an unknown status of a power-off": {"reboot: Power down", false, false, jail.Status{}, vmm.ExitShutdown},
		"an unknown status after a kill":   {"", true, false, jail.Status{}, vmm.ExitKilled},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{pressed: c.pressed}
			m.tail.add([]byte(c.console))
			if got := m.cause(vmm.Exit{}, c.status, c.killed); got.Cause != c.want {
				t.Errorf("%s has the cause %s (%s), want %s", name, got.Cause, got.Detail, c.want)
			}
		})
	}
}

func TestTheTailOfAConsoleIsBounded(t *testing.T) {
	var out tail
	for range 1000 {
		out.add([]byte(strings.Repeat("x", 100)))
	}
	out.add([]byte("end"))
	if got := out.String(); len(got) != maxTail || !strings.HasSuffix(got, "xend") {
		t.Errorf("%d bytes are kept: …%s", len(got), got[len(got)-8:])
	}
}

func TestMountsBelowADirectory(t *testing.T) {
	table := "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n" +
		"90 22 0:25 /f /data/vm\\0401/jail/x/memory rw - tmpfs tmpfs rw\n" +
		"91 22 0:25 /f /data/vm\\0401/jailbreak rw - tmpfs tmpfs rw\nshort\n"
	if got := mountsBelow(table, "/data/vm 1/jail"); !slices.Equal(got, []string{"/data/vm 1/jail/x/memory"}) {
		t.Errorf("found %q", got)
	}
}

// The jail gets a link to a file that its user may read and not write, else a copy, if
// the file is small.
func TestFilesAreAddedToTheJail(t *testing.T) {
	dir := t.TempDir()
	c := chroot{path: dir, uid: os.Geteuid() + 4711, gid: os.Getegid()}
	mine := filepath.Join(t.TempDir(), "file")
	inode := func(path string) uint64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	if err := os.WriteFile(mine, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.addFile("linked", mine); err != nil || inode(filepath.Join(dir, "linked")) != inode(mine) {
		t.Errorf("a readable file: %v", err)
	}
	if err := os.Chmod(mine, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(mine, maxCopy+1); err != nil {
		t.Fatal(err)
	}
	if err := c.addFile("large", mine); !errs.HasCode(err, "file_unreadable") {
		t.Errorf("a large file: %v", err)
	}
	if err := c.addFile("folder", dir); err == nil {
		t.Error("a folder was added")
	}
}

func TestTheConsoleIsReadAndWritten(t *testing.T) {
	dir := t.TempDir()
	stdin, stdout, err := openConsole(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll([]*os.File{stdin, stdout})
	if _, err := stdout.WriteString("before\n"); err != nil { // without a reader
		t.Fatal(err)
	}
	var out tail
	c, err := dialConsole(dir, &out)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "before\n" || out.String() != "before\n" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := stdin.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("the process reads %q, %v", buf[:n], err)
	}
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(buf); !os.IsTimeout(err) {
		t.Errorf("a read after the deadline: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.ended:
	default:
		t.Error("ended is open after Close")
	}
}
