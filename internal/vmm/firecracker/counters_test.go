//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

const someMetrics = `{"block":{"read_bytes":1,"write_bytes":20,"read_count":300,"write_count":4000},` +
	`"balloon":{"stats_updates_count":50,"stats_update_fails":6}}`

// talkative is a process's side of its pipes, and the machine that hears it.
func talkative(t *testing.T) (m *machine, metrics, words *os.File) {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		path := filepath.Join(dir, name)
		if err := makePipe(path); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	metrics, words = open(metricsPipe+".pipe"), open(logPipe+".pipe")
	open(stdoutPipe)
	m = &machine{handle: vmm.Handle{Dir: dir}, log: slog.New(slog.DiscardHandler)}
	if err := m.listen(); err != nil {
		t.Fatal(errors.Join(err, m.deafen()))
	}
	t.Cleanup(func() {
		if err := m.deafen(); err != nil {
			t.Error(err)
		}
	})
	return m, metrics, words
}

func TestMetricsGoOnAfterALineThatIsTooLong(t *testing.T) {
	m, metrics, _ := talkative(t)
	for _, line := range []string{someMetrics, strings.Repeat("x", 5*maxMetrics), "[]", someMetrics} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := m.blocks.after(ctx, func() error {
			_, err := io.WriteString(metrics, line+"\n")
			return err
		})
		cancel()
		if err != nil {
			t.Fatalf("after a line of %d bytes: %v", len(line), err)
		}
	}
	want := counts{
		BlockCounters: vmm.BlockCounters{ReadBytes: 2, WriteBytes: 40, ReadOps: 600, WriteOps: 8000},
		MemoryTold:    100, MemoryMissed: 12,
	}
	m.blocks.mu.Lock()
	defer m.blocks.mu.Unlock()
	if m.blocks.sum != want {
		t.Errorf("counted %+v, want %+v", m.blocks.sum, want)
	}
}

// However much a process says, it takes no more of the host's disk.
func TestWhatAProcessSaysIsKeptInBounds(t *testing.T) {
	m, metrics, words := talkative(t)
	line := strings.Repeat("w", 1023) + "\n"
	for range 4 * jail.MaxWords / len(line) {
		if _, err := io.WriteString(words, line); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if _, err := io.WriteString(metrics, someMetrics+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.blocks.after(t.Context(), func() error {
		_, err := io.WriteString(metrics, someMetrics+"\n")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	m.blocks.close()
	m.said.Close()
	for name, most := range map[string]int64{vmm.LogName: jail.MaxWords, countersFile: 1 << 10} {
		st, err := os.Stat(filepath.Join(m.handle.Dir, name))
		if err != nil || st.Size() == 0 || st.Size() > most {
			t.Errorf("%s: %+v, %v; want no more than %d bytes, and some", name, st, err, most)
		}
	}
}
