//go:build system

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// testMetrics compares the metrics of a VM with the guest's and the host's own
// numbers, and checks that restarts of hatchd and a reboot do not reset counters.
func testMetrics(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	first := w.metrics(t, v.ID)
	c := w.terminal(t, v.ID)
	requireGuestNumbers(t, w, c, v)
	w.requireTraffic(t, c, v)
	w.requireBlocks(t, c, v)
	requireCPU(t, w, c, v)
	w.requireHostNumbers(t, c, v)
	c.close()

	before := w.metrics(t, v.ID)
	requireOnward(t, first, before)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	adopted := w.metrics(t, v.ID)
	requireOnward(t, before, adopted)
	rebooted := w.rebootInside(t, v, adopted)
	requireOnward(t, adopted, rebooted)
	w.requireReset(t, v, rebooted)
}

func (w *world) metrics(t *testing.T, id string) api.Metrics {
	t.Helper()
	began := time.Now()
	m, err := w.client.VMMetrics(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("metrics took %v", took)
	}
	return m
}

// requireOnward checks that no counter was reset.
func requireOnward(t *testing.T, first, second api.Metrics) {
	t.Helper()
	a, b := first, second
	if b.VCPU.CPUTimeMicros < a.VCPU.CPUTimeMicros ||
		b.Net.RxBytes < a.Net.RxBytes || b.Net.TxBytes < a.Net.TxBytes || b.Net.RxPackets < a.Net.RxPackets || b.Net.TxPackets < a.Net.TxPackets ||
		b.Block.ReadBytes < a.Block.ReadBytes || b.Block.WriteBytes < a.Block.WriteBytes || b.Block.ReadOps < a.Block.ReadOps || b.Block.WriteOps < a.Block.WriteOps {
		t.Errorf("a counter went back from %+v to %+v", a, b)
	}
	if a.CountersSince == nil || b.CountersSince == nil || !a.CountersSince.Equal(b.CountersSince.Time) {
		t.Errorf("the counters are since %v, then since %v", a.CountersSince, b.CountersSince)
	}
}

// requireGuestNumbers compares with the guest's /proc.
func requireGuestNumbers(t *testing.T, w *world, c *terminal, v api.VM) {
	t.Helper()
	uptime := firstNumber(t, c.run(t, "cat /proc/uptime"))
	total := firstNumber(t, c.run(t, "sed -n 's/MemTotal: *//p' /proc/meminfo"))
	available := firstNumber(t, c.run(t, "sed -n 's/MemAvailable: *//p' /proc/meminfo"))
	disk := firstNumber(t, c.run(t, "df -k / | awk 'END { print $2 }'"))
	m := w.metrics(t, v.ID)
	if m.Memory.GuestTotalBytes == nil || m.Memory.GuestUsedBytes == nil || m.Disk == nil || m.Load == nil || m.VCPU.GuestBusyMicros == nil {
		t.Fatalf("the agent reports nothing: %+v", m)
	}
	if off := math.Abs(float64(m.UptimeSeconds) - uptime); off > 10 {
		t.Errorf("the uptime is %d s, in the guest %.0f", m.UptimeSeconds, uptime)
	}
	if got := float64(*m.Memory.GuestTotalBytes) / 1024; got != total {
		t.Errorf("the memory is %.0f KiB, in the guest %.0f", got, total)
	}
	if used := float64(*m.Memory.GuestUsedBytes) / 1024; math.Abs(used-(total-available)) > 8<<10 {
		t.Errorf("the used memory is %.0f KiB, in the guest %.0f", used, total-available)
	}
	if got := float64(m.Disk.TotalBytes) / 1024; math.Abs(got-disk) > 1 || m.Disk.UsedBytes > m.Disk.TotalBytes {
		t.Errorf("the root has %.0f KiB, in the guest %.0f", got, disk)
	}
	if m.State != api.StateRunning || m.VCPUCount != v.VCPUCount || m.MemMiB != v.MemMiB {
		t.Errorf("the metrics %+v do not match %+v", m, v)
	}
}

func firstNumber(t *testing.T, text string) float64 {
	t.Helper()
	word, _, _ := strings.Cut(text, " ")
	n, err := strconv.ParseFloat(word, 64)
	if err != nil {
		t.Fatalf("%q does not begin with a number: %v", text, err)
	}
	return n
}

// requireTraffic fetches a file from the guest and checks the network counters.
func (w *world) requireTraffic(t *testing.T, c *terminal, v api.VM) {
	t.Helper()
	const size = 1 << 20
	before := w.metrics(t, v.ID)
	c.run(t, "mkdir /tmp/www; head -c %d /dev/zero > /tmp/www/file; httpd -p 8080 -h /tmp/www", size)
	w.await(t, v.ID, "http:8080/file", normalReply)
	got, err := fetch("http://" + net.JoinHostPort(v.GuestIP, "8080") + "/file")
	if err != nil || got != size {
		t.Fatalf("fetched %d bytes, %v", got, err)
	}
	after := w.metrics(t, v.ID)
	if sent := after.Net.TxBytes - before.Net.TxBytes; sent < size || sent > 3*size {
		t.Errorf("the guest has sent %d bytes, the counter says %d", size, sent)
	}
	if received := after.Net.RxBytes - before.Net.RxBytes; received == 0 || received > size/2 {
		t.Errorf("the counter says that %d bytes were received", received)
	}
	var last error
	err = sandbox.Poll(normalReply, func() (bool, error) { // the connection's last packets may be under way
		last = compareWithTAP(v, w.metrics(t, v.ID).Net)
		return last == nil, nil
	})
	if err != nil {
		t.Error(errors.Join(err, last))
	}
}

func fetch(url string) (size int64, err error) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.Copy(io.Discard, resp.Body)
}

// compareWithTAP compares with the counters of the VM's TAP: what one receives the
// other sends.
func compareWithTAP(v api.VM, n api.NetMetrics) error {
	out, err := exec.Command("ip", "-json", "-statistics", "link", "show", "dev", v.TapName).Output()
	if err != nil {
		return err
	}
	type counters struct{ Bytes, Packets uint64 }
	var links []struct {
		Stats64 struct{ RX, TX counters }
	}
	if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
		return fmt.Errorf("ip prints %s: %w", out, err)
	}
	tap := links[0].Stats64
	if received, sent := (counters{n.RxBytes, n.RxPackets}), (counters{n.TxBytes, n.TxPackets}); received != tap.TX || sent != tap.RX {
		return fmt.Errorf("the guest has received %+v and sent %+v, the TAP has received %+v and sent %+v", received, sent, tap.RX, tap.TX)
	}
	return nil
}

// requireBlocks has the guest write to its disk and checks the disk counters.
func (w *world) requireBlocks(t *testing.T, c *terminal, v api.VM) {
	t.Helper()
	const size = 4 << 20
	before := w.metrics(t, v.ID)
	c.run(t, "head -c %d /dev/urandom > /written; sync", size)
	after := w.metrics(t, v.ID)
	if written := after.Block.WriteBytes - before.Block.WriteBytes; written < size {
		t.Errorf("the guest has written %d bytes, the counter says %d", size, written)
	}
	if after.Block.WriteOps <= before.Block.WriteOps {
		t.Error("no write operation is counted")
	}
	if grown := after.HostDiskBytes - before.HostDiskBytes; grown < size {
		t.Errorf("the guest has written %d bytes, its files have grown by %d", size, grown)
	}
	var last error
	err := sandbox.Poll(normalReply, func() (bool, error) { // the file system writes now and then by itself
		read := firstNumber(t, c.run(t, "awk '$3 ~ /^vd/ { n += $6 } END { print n * 512 }' /proc/diskstats"))
		written := firstNumber(t, c.run(t, "awk '$3 ~ /^vd/ { n += $10 } END { print n * 512 }' /proc/diskstats"))
		n := w.metrics(t, v.ID).Block
		if float64(n.ReadBytes) != read || float64(n.WriteBytes) != written {
			last = fmt.Errorf("the guest has read %.0f and written %.0f bytes, the counters are %+v", read, written, n)
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		t.Error(errors.Join(err, last))
	}
}

// requireCPU keeps the guest busy and compares with the VMM's own counters.
func requireCPU(t *testing.T, w *world, c *terminal, v api.VM) {
	t.Helper()
	before := w.metrics(t, v.ID)
	c.run(t, "timeout 3 sh -c 'while :; do :; done'")
	after := w.metrics(t, v.ID)
	if used := after.VCPU.CPUTimeMicros - before.VCPU.CPUTimeMicros; used < 1_000_000 {
		t.Errorf("three busy seconds of the guest count as %d µs", used)
	}
	if busy := *after.VCPU.GuestBusyMicros - *before.VCPU.GuestBusyMicros; busy < 1_000_000 {
		t.Errorf("the guest reports %d busy µs", busy)
	}
	if after.VCPU.UtilizationPercent < 20 || after.VCPU.UtilizationPercent > 250 {
		t.Errorf("the utilization is %v %% of a CPU", after.VCPU.UtilizationPercent)
	}
	kernel, resident := processUsage(t, vmm(t, v).pid)
	now := w.metrics(t, v.ID)
	if off := time.Duration(now.VCPU.CPUTimeMicros)*time.Microsecond - kernel; off < -30*time.Millisecond || off > 3*time.Second {
		t.Errorf("the kernel counts %v, hatchd %d µs", kernel, now.VCPU.CPUTimeMicros)
	}
	if off := now.Memory.HostResidentBytes - resident; off < -16<<20 || off > 16<<20 {
		t.Errorf("the kernel counts %d bytes of memory, hatchd %d", resident, now.Memory.HostResidentBytes)
	}
}

// processUsage reads the CPU time and the resident memory of a process.
func processUsage(t *testing.T, pid int) (cpu time.Duration, resident int64) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var user, system int64
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	_, err = fmt.Sscan(fields[11]+" "+fields[12]+" "+after, &user, &system, &resident)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond, resident << 10
}

// requireHostNumbers stops the agent: the metrics have the host's numbers then.
func (w *world) requireHostNumbers(t *testing.T, c *terminal, v api.VM) {
	t.Helper()
	c.run(t, "kill -STOP $(pidof hatch-agent)")
	began := time.Now()
	m := w.metrics(t, v.ID)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("with a stopped agent it took %v", took)
	}
	agents := m.Memory.GuestUsedBytes != nil && v.VMM == "qemu" // Firecracker gets it from the guest's kernel
	if agents || m.Disk != nil || m.Load != nil || m.VCPU.CPUTimeMicros == 0 || m.UptimeSeconds == 0 {
		t.Errorf("with a stopped agent: %+v", m)
	}
	c.run(t, "kill -CONT $(pidof hatch-agent)")
	if err := sandbox.Poll(readyLimit, func() (bool, error) { return w.metrics(t, v.ID).Disk != nil, nil }); err != nil {
		t.Errorf("once the agent continues, it reports nothing: %v", err)
	}
}

// rebootInside reboots the guest and returns the metrics of the next boot.
func (w *world) rebootInside(t *testing.T, v api.VM, before api.Metrics) api.Metrics {
	t.Helper()
	c := w.terminal(t, v.ID)
	c.run(t, "true")
	c.write(t, "reboot\n")
	defer c.close()
	var m api.Metrics
	err := sandbox.Poll(readyLimit, func() (bool, error) {
		m = w.metrics(t, v.ID)
		requireOnward(t, before, m)
		return m.Disk != nil && m.UptimeSeconds < before.UptimeSeconds, nil
	})
	if err != nil {
		t.Fatalf("no metrics of the next boot: %v; %+v", err, m)
	}
	return m
}

// requireReset stops the VM and starts it, which resets the counters.
func (w *world) requireReset(t *testing.T, v api.VM, before api.Metrics) {
	t.Helper()
	if _, err := w.client.StopVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	m := w.metrics(t, v.ID)
	if m.State != api.StateStopped || m.HostDiskBytes < 4<<20 {
		t.Errorf("stopped: %+v", m)
	}
	if m.CountersSince != nil || m.UptimeSeconds != 0 || m.VCPU != (api.VCPUMetrics{}) || m.Memory != (api.MemMetrics{}) ||
		m.Net != (api.NetMetrics{}) || m.Block != (api.BlockMetrics{}) || m.Disk != nil || m.Load != nil {
		t.Errorf("a stopped VM has numbers: %+v", m)
	}
	if got := w.hatch(t, "top", "--all"); !strings.Contains(got, v.ID) {
		t.Errorf("hatch top does not show it:\n%s", got)
	}
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if m := w.metrics(t, v.ID); m.CountersSince == nil || !m.CountersSince.After(before.CountersSince.Time) {
		t.Errorf("after a start the counters are since %v, before since %v", m.CountersSince, before.CountersSince)
	}
}

// testWaitWithoutNetwork waits for servers that are reached through the agent.
func testWaitWithoutNetwork(t *testing.T, w *world) {
	body := minimal()
	body.EnableNetwork = new(false)
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	short := time.Second
	if _, err := w.client.WaitVM(t.Context(), v.ID, "port:8080", short); !client.IsTimeout(err) || !strings.Contains(err.Error(), "no program listens on port 8080") {
		t.Errorf("of a closed port: %v", err)
	}
	c := w.terminal(t, v.ID)
	c.run(t, "mkdir /tmp/www; echo well > /tmp/www/health; httpd -p 127.0.0.1:8080 -h /tmp/www")
	began := time.Now()
	w.await(t, v.ID, "port:8080", normalReply)
	w.await(t, v.ID, "http:8080/health", normalReply)
	took(t, "two waits through the agent", began)
	if got := strings.TrimSpace(w.hatch(t, "wait", v.ID, "--for", "http:8080/health", "--timeout", "15s")); got != v.ID {
		t.Errorf("hatch wait prints %q", got)
	}
	if _, err := w.client.WaitVM(t.Context(), v.ID, "http:8080/nothing", short); !client.IsTimeout(err) || !strings.Contains(err.Error(), "404") {
		t.Errorf("of a missing page: %v", err)
	}
	if _, err := w.client.WaitVM(t.Context(), v.ID, "ssh", short); !client.HasCode(err, "wait_impossible") {
		t.Errorf("of ssh: %v", err)
	}
}
