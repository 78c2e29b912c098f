//go:build linux && amd64 && system

package qemu

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// BenchmarkStart measures the time from the call of Start to its return and to the
// first byte on the serial console, and the time of a kill.
func BenchmarkStart(b *testing.B) {
	l := newLab(b)
	d, err := New(b.Context(), Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	d.tscKHz() // measured once per daemon
	var returned, firstByte, killed time.Duration
	for b.Loop() {
		began := time.Now()
		m, err := d.Start(b.Context(), l.spec(b))
		if err != nil {
			b.Fatal(err)
		}
		returned += time.Since(began)
		conn := dialConsole(b, m)
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		firstByte += time.Since(began)
		began = time.Now()
		if err := m.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
		killed += time.Since(began)
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N) * float64(time.Millisecond)
	b.ReportMetric(float64(returned)/n, "ms-to-return")
	b.ReportMetric(float64(firstByte)/n, "ms-to-first-byte")
	b.ReportMetric(float64(killed)/n, "ms-to-kill")
}

func dialConsole(b *testing.B, m vmm.Machine) net.Conn {
	b.Helper()
	conn, err := m.Dial(b.Context(), vmm.ChannelConsole)
	if err != nil {
		b.Fatal(err)
	}
	return conn
}
