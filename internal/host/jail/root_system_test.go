//go:build linux && system

package jail

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// confined makes a process of jailShell one with a root directory of its own.
func confined(t *testing.T) func(*Process) {
	t.Helper()
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	return func(p *Process) {
		p.Path, p.OwnPIDs, p.Filtered = shell, true, true
		p.Root = &Root{Programs: Programs(shell), Devices: []string{os.DevNull, "/dev/zero"}}
	}
}

// confinedOutput runs a script in a root directory of its own, and returns what it
// prints.
func confinedOutput(t *testing.T, script string) string {
	t.Helper()
	p, out := jailShell(t, script, confined(t))
	defer func() { _ = p.Close() }()
	said, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	awaitExit(t, p)
	return string(said)
}

func TestTheRootDirectoryHasOnlyWhatItShows(t *testing.T) {
	said := confinedOutput(t, `for path in /* /dev/* /etc/*; do echo "$path"; done; for path in /proc/*; do test ! -e "$path" || echo "$path"; done
test -w / || echo read-only; true > /file || echo refused; true > /dev/null && echo null; echo $$`)
	lines := strings.Fields(said)
	may := []string{"/dev", "/dev/null", "/dev/zero", "/etc", "/etc/ld.so.cache", "/etc/alternatives", "/proc", "/proc/self", "/proc/thread-self", "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/gnu"}
	for _, line := range lines {
		if strings.HasPrefix(line, "/proc/") && strings.Trim(line[len("/proc/"):], "0123456789") == "" {
			continue // its own: the others are hidden, as the next test shows
		}
		if strings.HasPrefix(line, "/") && !slices.Contains(may, line) {
			t.Errorf("it sees %s", line)
		}
	}
	if got := lines[len(lines)-4:]; !slices.Equal(got, []string{"read-only", "refused", "null", "1"}) {
		t.Errorf("it writes to its root directory, not to /dev/null, or is not the first process of its own:\n%s", said)
	}
}

func TestOtherProcessesAreHidden(t *testing.T) {
	said := confinedOutput(t, `for path in /proc/[0-9]*; do test ! -e "$path" || echo "$path"; done; cat /proc/self/status >/dev/null && echo itself
cat /proc/1/cmdline /proc/`+filepath.Base(procPath(os.Getpid(), ""))+`/cmdline && echo others; test -e /proc/sys || echo no host`)
	if lines := strings.Fields(said); len(lines) < 3 || !strings.HasSuffix(said, "itself\nno host\n") || strings.Count(said, "/proc/") > 2 {
		t.Errorf("it sees %s", said) // the shell, and at most a child of it
	}
}

func TestAProgramOutsideOfTheFoldersForProgramsRuns(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "bin")
	data := filepath.Join(filepath.Dir(bin), "share")
	for _, dir := range []string{bin, data} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{filepath.Join(bin, "sh"): shell, filepath.Join(bin, "other"): shell, filepath.Join(data, "file"): nil} {
		if err := os.WriteFile(path, content, 0o755); err != nil { //nolint:gosec // programs
			t.Fatal(err)
		}
	}
	got, err := Try(t.Context(), filepath.Join(bin, "sh"), "-c", "echo "+bin+"/* "+data+"/*")
	if want := bin + "/sh " + data + "/file\n"; err != nil || got != want {
		t.Errorf("it sees %q, %v; want %q", got, err, want)
	}
}

func TestTheHostKeepsItsMounts(t *testing.T) {
	mounts := func() string {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := mounts()
	confinedOutput(t, "exit 0")
	if after := mounts(); after != before {
		t.Errorf("the mounts were\n%sand are\n%s", before, after)
	}
}

func TestFilesGrowToTheLimitOnly(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	stdin, begin := awaitedStdin(t)
	const limit = 1 << 20
	p, _ := jailShell(t, "read x; head -c 3000000 /dev/zero >&3", func(p *Process) {
		confined(t)(p)
		p.Stdin, p.Files, p.FileSize = stdin, []*os.File{file}, limit
	})
	defer func() { _ = p.Close() }()
	begin()
	awaitExit(t, p)
	if st, err := file.Stat(); err != nil || st.Size() != limit {
		t.Errorf("it has %d bytes, %v; the limit is %d", st.Size(), err, limit)
	}
}

func TestTrySaysWhatFails(t *testing.T) {
	if got, err := Try(t.Context(), "/bin/sh", "-c", "echo fine"); err != nil || got != "fine\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Try(t.Context(), "/bin/sh", "-c", "echo broken >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "(exit status 3): broken") {
		t.Errorf("a program that fails: %v", err)
	}
	if _, err := Try(t.Context(), "/no/such/program"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	timer := time.AfterFunc(10*time.Millisecond, cancel) // earlier is fine, too
	defer timer.Stop()
	if _, err := Try(ctx, "/bin/sh", "-c", "while :; do :; done"); err == nil {
		t.Error("a program without an end ended well")
	}
}
