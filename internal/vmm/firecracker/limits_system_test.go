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

// config is the part of the answer to GET /vm/config that the tests read.
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

// A guest must not have access to Firecracker's metadata service.
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

// rate returns the bytes and operations per second that a limiter permits.
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

// limitsOf asks Firecracker for the limits of the network and of each disk, and checks
// that those of the disks are the same.
func limitsOf(t *testing.T, m vmm.Machine) (all vmm.RateLimits) {
	t.Helper()
	c := configOf(t, m)
	for i, d := range c.Drives {
		var limit vmm.DiskLimit
		limit.BytesPerSecond, limit.OpsPerSecond = d.Both.rate()
		if i > 0 && limit != all.Disk {
			t.Errorf("disk %d has the limits %+v, and the disks before it %+v", i, limit, all.Disk)
		}
		all.Disk = limit
	}
	for _, n := range c.Networks {
		all.NetworkIn.BytesPerSecond, _ = n.In.rate()
		all.NetworkOut.BytesPerSecond, _ = n.Out.rate()
	}
	return all
}

// Firecracker throttles a guest that exceeds its limits, and counts how often.
func TestAGuestThatExceedsItsLimitsIsThrottled(t *testing.T) {
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
		t.Errorf("Firecracker has the limits %+v, want %+v", got, s.Limits)
	}
	c.Say("netup")
	c.Expect("netup: ok")

	c.Say("fill own 2")
	c.Expect("fill: ok")
	const frames = 30 // of 60 bytes each; the burst is 512 bytes out and 1 KiB in
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
	if got := throttlingsOf(t, m, s); got.disk == 0 || got.in == 0 || got.out == 0 {
		t.Errorf("the guest exceeded all its limits, and was throttled %+v times", got)
	}
}

// throttlings count how often a guest was throttled.
type throttlings struct{ disk, in, out int }

// throttlingsOf reads Firecracker's metrics in the driver's place.
func throttlingsOf(t *testing.T, m vmm.Machine, s vmm.Spec) throttlings {
	t.Helper()
	m.(*machine).counters.close()
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
	var metrics struct {
		Block struct {
			Throttled int `json:"rate_limiter_throttled_events"`
		} `json:"block"`
		Net struct {
			In  int `json:"rx_rate_limiter_throttled"`
			Out int `json:"tx_rate_limiter_throttled"`
		} `json:"net"`
	}
	if err := json.Unmarshal(line, &metrics); err != nil {
		t.Fatal(err)
	}
	return throttlings{metrics.Block.Throttled, metrics.Net.In, metrics.Net.Out}
}
