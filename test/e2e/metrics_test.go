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

// testMetrics compares what the API tells of a VM with what its guest and the
// host say themselves, and follows the counters through all that must not set
// them back.
func testMetrics(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	first := w.metrics(t, v.ID)
	c := w.terminal(t, v.ID)
	requireAsTheGuestSays(t, w, c, v)
	w.requireTraffic(t, c, v)
	w.requireBlocks(t, c, v)
	requireCPU(t, w, c, v)
	w.requireBoundedWait(t, c, v)
	c.close()

	before := w.metrics(t, v.ID)
	requireOnward(t, first, before)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	adopted := w.metrics(t, v.ID)
	requireOnward(t, before, adopted)
	rebooted := w.rebootFromWithin(t, v, adopted)
	requireOnward(t, adopted, rebooted)
	w.requireNothingUsed(t, v, rebooted)
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

// requireOnward checks that no counter went back, nor what it counts from.
func requireOnward(t *testing.T, first, second api.Metrics) {
	t.Helper()
	a, b := first, second
	if b.VCPU.CPUTimeMicros < a.VCPU.CPUTimeMicros ||
		b.Net.RxBytes < a.Net.RxBytes || b.Net.TxBytes < a.Net.TxBytes || b.Net.RxPackets < a.Net.RxPackets || b.Net.TxPackets < a.Net.TxPackets ||
		b.Block.ReadBytes < a.Block.ReadBytes || b.Block.WriteBytes < a.Block.WriteBytes || b.Block.ReadOps < a.Block.ReadOps || b.Block.WriteOps < a.Block.WriteOps {
		t.Errorf("a counter went back from %+v to %+v", a, b)
	}
	if a.CountersSince == nil || b.CountersSince == nil || !a.CountersSince.Equal(*b.CountersSince) {
		t.Errorf("the counters count from %v, then from %v", a.CountersSince, b.CountersSince)
	}
}

// requireAsTheGuestSays reads the guest's own /proc.
func requireAsTheGuestSays(t *testing.T, w *world, c *terminal, v api.VM) {
	t.Helper()
	uptime := firstNumber(t, c.run(t, "cat /proc/uptime"))
	total := firstNumber(t, c.run(t, "sed -n 's/MemTotal: *//p' /proc/meminfo"))
	available := firstNumber(t, c.run(t, "sed -n 's/MemAvailable: *//p' /proc/meminfo"))
	disk := firstNumber(t, c.run(t, "df -k / | awk 'END { print $2 }'"))
	m := w.metrics(t, v.ID)
	if m.Memory.GuestTotalBytes == nil || m.Memory.GuestUsedBytes == nil || m.Disk == nil || m.Load == nil || m.VCPU.GuestBusyMicros == nil {
		t.Fatalf("the agent tells nothing: %+v", m)
	}
	if off := math.Abs(float64(m.UptimeSeconds) - uptime); off > 10 {
		t.Errorf("up for %d s, and the guest says %.0f", m.UptimeSeconds, uptime)
	}
	if got := float64(*m.Memory.GuestTotalBytes) / 1024; got != total {
		t.Errorf("%.0f KiB of memory, and the guest says %.0f", got, total)
	}
	if used := float64(*m.Memory.GuestUsedBytes) / 1024; math.Abs(used-(total-available)) > 8<<10 {
		t.Errorf("%.0f KiB of memory are used, and the guest says %.0f", used, total-available)
	}
	if got := float64(m.Disk.TotalBytes) / 1024; math.Abs(got-disk) > 1 || m.Disk.UsedBytes > m.Disk.TotalBytes {
		t.Errorf("the root has %.0f KiB, and the guest says %.0f", got, disk)
	}
	if m.State != api.StateRunning || m.VCPUCount != v.VCPUCount || m.MemMiB != v.MemMiB {
		t.Errorf("%+v is not of %+v", m, v)
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

// requireTraffic fetches a file from the guest, once its server answers.
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
		t.Errorf("the guest has sent %d bytes, and %d are counted", size, sent)
	}
	if received := after.Net.RxBytes - before.Net.RxBytes; received == 0 || received > size/2 {
		t.Errorf("%d bytes are counted as received", received)
	}
	var last error
	err = sandbox.Poll(normalReply, func() (bool, error) { // the connection's last packets may be on their way
		last = asIPSays(v, w.metrics(t, v.ID).Net)
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

// asIPSays compares with what ip tells of the VM's TAP, crosswise.
func asIPSays(v api.VM, n api.NetMetrics) error {
	out, err := exec.Command("ip", "-json", "-statistics", "link", "show", "dev", v.TapName).Output()
	if err != nil {
		return err
	}
	type counters struct{ Bytes, Packets uint64 }
	var links []struct {
		Stats64 struct{ RX, TX counters }
	}
	if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
		return fmt.Errorf("ip says %s: %w", out, err)
	}
	tap := links[0].Stats64
	if received, sent := (counters{n.RxBytes, n.RxPackets}), (counters{n.TxBytes, n.TxPackets}); received != tap.TX || sent != tap.RX {
		return fmt.Errorf("the guest has received %+v and sent %+v, the TAP has received %+v and sent %+v", received, sent, tap.RX, tap.TX)
	}
	return nil
}

// requireBlocks lets the guest write to its disk.
func (w *world) requireBlocks(t *testing.T, c *terminal, v api.VM) {
	t.Helper()
	const size = 4 << 20
	before := w.metrics(t, v.ID)
	c.run(t, "head -c %d /dev/urandom > /written; sync", size)
	after := w.metrics(t, v.ID)
	if written := after.Block.WriteBytes - before.Block.WriteBytes; written < size {
		t.Errorf("the guest has written %d bytes, and %d are counted", size, written)
	}
	if after.Block.WriteOps <= before.Block.WriteOps {
		t.Error("it has written without an operation")
	}
	if grown := after.HostDiskBytes - before.HostDiskBytes; grown < size {
		t.Errorf("the guest has written %d bytes, and its files have grown by %d", size, grown)
	}
	var last error
	err := sandbox.Poll(normalReply, func() (bool, error) { // the file system writes on by itself, now and then
		read := firstNumber(t, c.run(t, "awk '$3 ~ /^vd/ { n += $6 } END { print n * 512 }' /proc/diskstats"))
		written := firstNumber(t, c.run(t, "awk '$3 ~ /^vd/ { n += $10 } END { print n * 512 }' /proc/diskstats"))
		n := w.metrics(t, v.ID).Block
		if float64(n.ReadBytes) != read || float64(n.WriteBytes) != written {
			last = fmt.Errorf("the guest has read %.0f and written %.0f bytes, and counted are %+v", read, written, n)
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
		t.Errorf("three busy seconds of the guest are counted as %d µs", used)
	}
	if busy := *after.VCPU.GuestBusyMicros - *before.VCPU.GuestBusyMicros; busy < 1_000_000 {
		t.Errorf("the guest says that it was busy for %d µs", busy)
	}
	if after.VCPU.UtilizationPercent < 20 || after.VCPU.UtilizationPercent > 250 {
		t.Errorf("it uses %v %% of a CPU", after.VCPU.UtilizationPercent)
	}
	kernel, resident := ofProcess(t, vmm(t, v).pid)
	now := w.metrics(t, v.ID)
	if off := time.Duration(now.VCPU.CPUTimeMicros)*time.Microsecond - kernel; off < -30*time.Millisecond || off > 3*time.Second {
		t.Errorf("the kernel counts %v, and we %d µs", kernel, now.VCPU.CPUTimeMicros)
	}
	if off := now.Memory.HostResidentBytes - resident; off < -16<<20 || off > 16<<20 {
		t.Errorf("the kernel counts %d bytes of memory, and we %d", resident, now.Memory.HostResidentBytes)
	}
}

// ofProcess reads what the kernel has counted for a process.
func ofProcess(t *testing.T, pid int) (cpu time.Duration, resident int64) {
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

// requireBoundedWait stops the agent: the host's numbers come all the same.
func (w *world) requireBoundedWait(t *testing.T, c *terminal, v api.VM) {
	t.Helper()
	c.run(t, "kill -STOP $(pidof hatch-agent)")
	began := time.Now()
	m := w.metrics(t, v.ID)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("with a stopped agent it took %v", took)
	}
	told := m.Memory.GuestUsedBytes != nil && v.VMM == "qemu" // to others, its kernel tells that
	if told || m.Disk != nil || m.Load != nil || m.VCPU.CPUTimeMicros == 0 || m.UptimeSeconds == 0 {
		t.Errorf("with a stopped agent: %+v", m)
	}
	c.run(t, "kill -CONT $(pidof hatch-agent)")
	if err := sandbox.Poll(readyLimit, func() (bool, error) { return w.metrics(t, v.ID).Disk != nil, nil }); err != nil {
		t.Errorf("after the agent goes on, it tells nothing: %v", err)
	}
}

// rebootFromWithin returns metrics of the next boot.
func (w *world) rebootFromWithin(t *testing.T, v api.VM, before api.Metrics) api.Metrics {
	t.Helper()
	c := w.terminal(t, v.ID)
	c.run(t, "true")
	c.say(t, "reboot\n")
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

// requireNothingUsed stops the VM, and starts it: then it counts anew.
func (w *world) requireNothingUsed(t *testing.T, v api.VM, before api.Metrics) {
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
		t.Errorf("a stopped VM uses something: %+v", m)
	}
	if got := w.hatch(t, "top", "--all"); !strings.Contains(got, v.ID) {
		t.Errorf("hatch top does not show it:\n%s", got)
	}
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if m := w.metrics(t, v.ID); m.CountersSince == nil || !m.CountersSince.After(*before.CountersSince) {
		t.Errorf("after a start the counters count from %v, before from %v", m.CountersSince, before.CountersSince)
	}
}

// testWaitWithoutNetwork waits for servers that only the agent can reach.
func testWaitWithoutNetwork(t *testing.T, w *world) {
	body := minimal()
	body.EnableNetwork = new(false)
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	short := time.Second
	if _, err := w.client.WaitVM(t.Context(), v.ID, "port:8080", short); !client.IsTimeout(err) || !strings.Contains(err.Error(), "nobody listens on port 8080") {
		t.Errorf("of a port that is closed: %v", err)
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
		t.Errorf("of a page that is not there: %v", err)
	}
	if _, err := w.client.WaitVM(t.Context(), v.ID, "ssh", short); !client.HasCode(err, "wait_hopeless") {
		t.Errorf("of ssh: %v", err)
	}
}
