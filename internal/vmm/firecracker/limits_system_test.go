//go:build linux && amd64 && system

package firecracker

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
)

// config is what Firecracker tells of its machine, as far as it is asked for here.
type config struct {
	Drives   []driveLimit    `json:"drives"`
	Networks []networkLimits `json:"network-interfaces"`
	MMDS     any             `json:"mmds-config"`
}

func configOf(t *testing.T, m vmm.Machine) (c config) {
	t.Helper()
	if err := m.(*machine).api.call(t.Context(), http.MethodGet, "/vm/config", nil, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// The metadata service is a way out of the guest that nobody has asked for.
func TestAMachineHasNoMetadataService(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	tap, _ := newTAP(t, "hatchfc2")
	s.NIC = &vmm.NIC{MAC: net.HardwareAddr{2, 0, 0, 0xa, 0xb, 0xc}, TAP: tap}
	m, _ := l.run(t, s)
	if c := configOf(t, m); len(c.Networks) != 1 || c.MMDS != nil {
		t.Errorf("with %d network devices the metadata service is %v", len(c.Networks), c.MMDS)
	}
}

// rate is what a limiter lets through in a second.
func (l *rateLimiter) rate() (bytes, ops int64) {
	if l == nil {
		return 0, 0
	}
	perSecond := func(b *tokenBucket) int64 {
		if b == nil {
			return 0
		}
		return b.Size * 1000 / b.RefillMillis
	}
	return perSecond(l.Bytes), perSecond(l.Ops)
}

// limitsOf asks Firecracker for the limits of the network and of each disk, which
// must be the same.
func limitsOf(t *testing.T, m vmm.Machine) (all vmm.RateLimits) {
	t.Helper()
	c := configOf(t, m)
	for i, d := range c.Drives {
		var one vmm.DiskLimit
		one.BytesPerSecond, one.OpsPerSecond = d.Both.rate()
		if i > 0 && one != all.Disk {
			t.Errorf("disk %d has the limits %+v, and those before it %+v", i, one, all.Disk)
		}
		all.Disk = one
	}
	for _, n := range c.Networks {
		all.NetworkIn.BytesPerSecond, _ = n.In.rate()
		all.NetworkOut.BytesPerSecond, _ = n.Out.rate()
	}
	return all
}

// A guest that asks for more than it may have is made to wait: Firecracker
// counts how often.
func TestAGuestIsHeldToItsLimits(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	s.Limits = vmm.RateLimits{
		Disk:       vmm.DiskLimit{BytesPerSecond: 1 << 20},
		NetworkIn:  vmm.NetworkLimit{BytesPerSecond: 1 << 10},
		NetworkOut: vmm.NetworkLimit{BytesPerSecond: 1 << 9},
	}
	mac, host := net.HardwareAddr{2, 0, 0, 0xa, 0xb, 0xc}, net.HardwareAddr{2, 0, 0, 1, 1, 1}
	tap, wire := newTAP(t, "hatchfc1")
	s.NIC = &vmm.NIC{MAC: mac, TAP: tap}
	m, c := l.run(t, s)
	if got := limitsOf(t, m); got != s.Limits {
		t.Errorf("Firecracker holds the guest to %+v, want %+v", got, s.Limits)
	}
	c.Say("netup")
	c.Expect("netup: ok")

	c.Say("fill own 2")
	c.Expect("fill: ok")
	const frames = 30 // of 60 bytes each, where half a KiB or a whole one may pass at once
	for range frames {
		c.Say("send " + hex.EncodeToString(frame(host, mac, "a frame of the guest's")))
		c.Expect("send: ok")
	}
	in := frame(mac, host, "a frame of the host's")
	for range frames {
		if err := unix.Send(wire, in, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range frames {
		c.Expect("frame " + hex.EncodeToString(in))
	}
	told := throttled(t, m, s)
	if told.disk == 0 || told.in == 0 || told.out == 0 {
		t.Errorf("the guest has asked for more than it may have, and was made to wait as often as this: %+v", told)
	}
}

// waits count how often a guest was made to wait.
type waits struct{ disk, in, out int }

// throttled reads Firecracker's metrics in the driver's place.
func throttled(t *testing.T, m vmm.Machine, s vmm.Spec) waits {
	t.Helper()
	m.(*machine).blocks.close()
	pipe, err := openPipe(filepath.Join(s.Dir, metricsPipe+".pipe"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pipe.Close() }()
	if err := m.(*machine).api.action(t.Context(), "FlushMetrics"); err != nil {
		t.Fatal(err)
	}
	if err := pipe.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(pipe).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var told struct {
		Block struct {
			Waits int `json:"rate_limiter_throttled_events"`
		} `json:"block"`
		Net struct {
			In  int `json:"rx_rate_limiter_throttled"`
			Out int `json:"tx_rate_limiter_throttled"`
		} `json:"net"`
	}
	if err := json.Unmarshal(line, &told); err != nil {
		t.Fatal(err)
	}
	return waits{told.Block.Waits, told.Net.In, told.Net.Out}
}
