//go:build system

package e2e

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// diskRate is the limit of the guests' disks, in bytes per second.
const diskRate = 4 << 20

// testLimits writes to a disk that a template limits: of a VM, of the same after a
// sleep, and of its fork.
func testLimits(t *testing.T, w *world) {
	slow, err := w.client.CreateTemplate(t.Context(), api.CreateTemplate{
		Name: "slow", MachineSpec: api.MachineSpec{RateLimits: &api.RateLimits{Disk: &api.DiskRateLimit{BytesPerSecond: diskRate}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.client.DeleteTemplate(t.Context(), slow.ID); err != nil {
			t.Error(err)
		}
	}()
	body := minimal()
	body.TemplateID = slow.ID
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	w.requireSlow(t, v)
	w.sleep(t, v)
	w.wake(t, v)
	w.requireSlow(t, v)
	forks, err := w.client.ForkVM(t.Context(), v.ID, api.ForkVM{})
	if err != nil {
		t.Fatal(err)
	}
	w.requireSlow(t, forks.VMs[0])
	for _, id := range []string{v.ID, forks.VMs[0].ID} {
		w.delete(t, id)
	}
}

// netRate is the limit of the guest's network each way, in bytes per second.
const netRate = 1 << 20

// testNetworkLimits moves more over the network than the burst allows.
func testNetworkLimits(t *testing.T, w *world) {
	body := minimal()
	limit := &api.NetworkRateLimit{BytesPerSecond: netRate}
	body.RateLimits = &api.RateLimits{NetworkIn: limit, NetworkOut: limit}
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	openBulk(t)
	to := fmt.Sprintf("nc -w 30 %s %d", internetAddr, bulkPort)
	for direction, line := range map[string]string{
		"in":  to + " </dev/null | wc -c",
		"out": fmt.Sprintf("dd if=/dev/zero bs=1k count=%d 2>/dev/null | %s", bulk>>10, to),
	} {
		t.Run(direction, func(t *testing.T) {
			hundredths, moved, _ := strings.Cut(w.inside(t, v, timed(line)), "\n")
			took, err := strconv.Atoi(hundredths)
			if least := 100 * (bulk - 2*netRate) / netRate; err != nil || took < least || moved != strconv.Itoa(bulk) {
				t.Errorf("%q has moved %q bytes in %q hundredths of a second; want %d bytes in at least %d", line, moved, hundredths, bulk, least)
			}
			t.Logf("%d MiB took %s hundredths of a second", bulk>>20, hundredths)
		})
	}
	w.delete(t, v.ID)
}

// How many bytes are moved, and the internet's port for it.
const (
	bulk     = 5 << 20
	bulkPort = 90
)

// openBulk opens a port of the internet that sends the bytes to a client that sends
// none, and otherwise answers how many it received.
func openBulk(t *testing.T) {
	t.Helper()
	var listener net.Listener
	onInternet(t, func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", internetAddr, bulkPort))
		return err
	})
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if n, _ := io.Copy(io.Discard, conn); n == 0 {
				_, _ = conn.Write(make([]byte, bulk))
			} else {
				_, _ = fmt.Fprint(conn, n)
			}
			_ = conn.Close()
		}
	})
}

// timed is a shell line that prints how many hundredths of a second a line takes,
// and then that line's output.
func timed(line string) string {
	const now = "$(cut -d' ' -f1 /proc/uptime | tr -d .)"
	return "began=" + now + "; said=$(" + line + "); echo $((" + now + " - began)); echo $said"
}

// requireSlow has a guest write more than its burst. It checks that this takes as
// long as the limit demands; a busy host may make it longer.
func (w *world) requireSlow(t *testing.T, v api.VM) {
	t.Helper()
	if l := w.get(t, v.ID).RateLimits; l == nil || l.Disk == nil || l.Disk.BytesPerSecond != diskRate || l.NetworkIn != nil {
		t.Errorf("%s has the limits %+v", v.ID, l)
	}
	const write = 20 << 20
	took := w.inside(t, v, timed(fmt.Sprintf("dd if=/dev/zero of=/slow bs=1M count=%d conv=fsync 2>/dev/null; rm /slow", write>>20)))
	hundredths, err := strconv.Atoi(took)
	if least := 100 * (write - diskRate) / diskRate; err != nil || hundredths < least {
		t.Errorf("%d MiB took the guest %s hundredths of a second, %v; want at least %d", write>>20, took, err, least)
	}
	t.Logf("%d MiB took %s hundredths of a second", write>>20, took)
}

// testProbeLimits reads the limits from Firecracker's own API.
func testProbeLimits(t *testing.T, w *world) {
	body := w.probeBody()
	body.RateLimits = &api.RateLimits{
		Disk:       &api.DiskRateLimit{BytesPerSecond: diskRate, OpsPerSecond: 500},
		NetworkIn:  &api.NetworkRateLimit{BytesPerSecond: 3 << 20},
		NetworkOut: &api.NetworkRateLimit{BytesPerSecond: 2 << 20},
	}
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	requireProbeLimits(t, v)
	w.sleep(t, v)
	w.wake(t, v)
	requireProbeLimits(t, w.get(t, v.ID))
	w.delete(t, v.ID)
}

func requireProbeLimits(t *testing.T, v api.VM) {
	t.Helper()
	config, err := getSocket(v.SocketPath, "/vm/config")
	if err != nil {
		t.Fatal(err)
	}
	config = strings.ReplaceAll(config, `,"one_time_burst":null`, "")
	for limit, times := range map[string]int{
		`"rate_limiter":{"bandwidth":{"size":4194304,"refill_time":1000},"ops":{"size":500,"refill_time":1000}}`: 3,
		`"rx_rate_limiter":{"bandwidth":{"size":3145728,"refill_time":1000},"ops":null}`:                         1,
		`"tx_rate_limiter":{"bandwidth":{"size":2097152,"refill_time":1000},"ops":null}`:                         1,
	} {
		if got := strings.Count(config, limit); got != times {
			t.Errorf("Firecracker has %s %d times, not %d: %s", limit, got, times, config)
		}
	}
	if v.RateLimits == nil || v.RateLimits.NetworkOut == nil || v.RateLimits.NetworkOut.BytesPerSecond != 2<<20 {
		t.Errorf("the VM has the limits %+v", v.RateLimits)
	}
}
