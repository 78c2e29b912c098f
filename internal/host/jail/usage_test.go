//go:build linux

package jail

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStatIsReadWithAnyProcessName(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for _, name := range []string{"(qemu)", "(a b)", "(a) 1 (b)", "(()"} {
		got, err := parseStat([]byte("12 " + name + rest))
		if want := (procStat{state: 'S', start: 4711}); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	kernel, err := parseStat([]byte("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 30 0 0"))
	if want := (procStat{state: 'S', kernel: true, start: 30}); err != nil || kernel != want {
		t.Errorf("a thread of the kernel: %+v, %v", kernel, err)
	}
	for _, bad := range []string{"", "12 (x", "12 (x) S 1 2", "12 (x) S a b c d e f g h i j k l m n o p q r s"} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q gave %+v", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"))
	f.Fuzz(func(_ *testing.T, stat []byte) { _, _ = parseStat(stat) })
}

// busyShell starts a shell that only computes.
func busyShell(t *testing.T) *Proc {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(id, "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		<-p.Exited()
		_ = cmd.Wait() // it was reaped already
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestUsageGrowsWithWhatAProcessDoes(t *testing.T) {
	before := time.Now()
	p := busyShell(t)
	first, err := p.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if off := first.StartedAt.Sub(before); off < -2*time.Second || off > 2*time.Second {
		t.Errorf("it was started at %v, and Usage says %v", before, first.StartedAt)
	}
	if first.Resident < int64(os.Getpagesize()) {
		t.Errorf("it has %d bytes of memory", first.Resident)
	}
	deadline := time.After(20 * time.Second)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for last := first; last.CPU < first.CPU+200*time.Millisecond; {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("a process that only computes has used %v more", last.CPU-first.CPU)
		}
		now, err := p.Usage()
		if err != nil {
			t.Fatal(err)
		}
		if now.CPU < last.CPU || now.StartedAt != first.StartedAt {
			t.Fatalf("went from %+v to %+v", last, now)
		}
		last = now
	}
}

func TestBootTime(t *testing.T) {
	got, err := parseBootTime([]byte("cpu  1 2 3\nintr 5 btime 6\nbtime 1700000000\nprocesses 7\n"))
	if want := time.Unix(1700000000, 5e8); err != nil || !got.Equal(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, wrong := range []string{"", "cpu 1\n", "btime x\n", "btime \n"} {
		if got, err := parseBootTime([]byte(wrong)); err == nil {
			t.Errorf("%q is parsed as %v", wrong, got)
		}
	}
	up, err := startedAt(0)
	if err != nil {
		t.Fatal(err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	if off := time.Since(up) - time.Duration(now.Nano()); off.Abs() > 2*time.Second {
		t.Errorf("booted at %v: %v off", up, off)
	}
}

func TestUsageOfAnEndedProcess(t *testing.T) {
	p := busyShell(t)
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Usage(); !errors.Is(err, ErrGone) {
		t.Errorf("got %+v, %v", got, err)
	}
	other := &Proc{identity: Identity{PID: os.Getpid(), StartTime: 1}} // its pid is ours now
	if got, err := other.Usage(); !errors.Is(err, ErrGone) {
		t.Errorf("got the usage of another process: %+v, %v", got, err)
	}
}
