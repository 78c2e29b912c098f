package httpapi_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestMetricsOnTheWire(t *testing.T) {
	s := newServer(t)
	s.vms.metrics = func(v vm.VM) vm.Metrics {
		return vm.Metrics{
			VM: v, CollectedAt: began, CountersSince: new(began), Uptime: 90*time.Second + 999*time.Millisecond,
			CPUTime: 1234567 * time.Nanosecond, CPUPercent: 99.12345, Resident: 1 << 30,
			Block:   vmm.BlockCounters{ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4},
			Traffic: network.Traffic{RxBytes: 5, TxBytes: 6, RxPackets: 7, TxPackets: 8}, HostDisk: 9,
			Guest: &vm.GuestUsage{CPUBusy: time.Second, Load: [3]float64{0.25, 1, 2}, MemTotal: 20, MemUsed: 10, DiskTotal: 40, DiskUsed: 30},
		}
	}
	const want = `{"vm_id":"vm_known0000000","state":"running","vcpu_count":2,"mem_mib":1024,` +
		`"collected_at":"2026-03-06T11:00:00.123Z","counters_since":"2026-03-06T11:00:00.123Z","uptime_seconds":90,` +
		`"vcpu":{"cpu_time_micros":1234,"utilization_percent":99.12,"guest_busy_micros":1000000},` +
		`"memory":{"guest_used_bytes":10,"guest_total_bytes":20,"host_resident_bytes":1073741824},` +
		`"disk":{"used_bytes":30,"total_bytes":40},"host_disk_bytes":9,` +
		`"net":{"rx_bytes":5,"tx_bytes":6,"rx_packets":7,"tx_packets":8},` +
		`"block":{"read_bytes":1,"write_bytes":2,"read_ops":3,"write_ops":4},` +
		`"load":{"avg1":0.25,"avg5":1,"avg15":2}}`
	reply := s.call(t, "GET", "/vms/"+knownVM+"/metrics", "")
	wantStatus(t, reply, 200)
	requireSameJSON(t, string(reply.body), want)

	s.vms.metrics = func(v vm.VM) vm.Metrics { // whose agent does not answer
		return vm.Metrics{VM: v, CollectedAt: began, GuestMemory: vmm.GuestMemory{Total: 20, Available: 15}}
	}
	var got struct{ Memory json.RawMessage }
	if err := json.Unmarshal(s.call(t, "GET", "/vms/"+knownVM+"/metrics", "").body, &got); err != nil {
		t.Fatal(err)
	}
	requireSameJSON(t, string(got.Memory), `{"guest_used_bytes":5,"guest_total_bytes":20,"host_resident_bytes":0}`)

	s.vms.metrics = func(v vm.VM) vm.Metrics {
		v.State = vm.Stopped
		return vm.Metrics{VM: v, CollectedAt: began, HostDisk: 9}
	}
	const stopped = `{"vm_id":"vm_known0000000","state":"stopped","vcpu_count":2,"mem_mib":1024,` +
		`"collected_at":"2026-03-06T11:00:00.123Z","uptime_seconds":0,` +
		`"vcpu":{"cpu_time_micros":0,"utilization_percent":0},"memory":{"host_resident_bytes":0},"host_disk_bytes":9,` +
		`"net":{"rx_bytes":0,"tx_bytes":0,"rx_packets":0,"tx_packets":0},` +
		`"block":{"read_bytes":0,"write_bytes":0,"read_ops":0,"write_ops":0}}`
	requireSameJSON(t, string(s.call(t, "GET", "/vms/"+knownVM+"/metrics", "").body), stopped)
}

// requireSameJSON compares two texts as JSON, but for the order of fields.
func requireSameJSON(t *testing.T, got, want string) {
	t.Helper()
	normal := func(text string) string {
		var v any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if normal(got) != normal(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
