package snapshot_test

import (
	"bytes"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
)

func manifestText(t testing.TB) []byte {
	t.Helper()
	text, err := snapshot.ManifestOf(snapshot.Snapshot{
		ID: "snap_a1", OwnerID: "acc_a", VMID: "vm_a", Name: "before", Kind: snapshot.Manual, ParentID: "snap_b2",
		CreatedAt: time.Date(2026, 2, 3, 4, 5, 6, 789000, time.UTC),
		VM: snapshot.Origin{
			InstanceID: "vm_a", MAC: net.HardwareAddr{2, 0xfc, 0, 0, 0, 2}, Address: netip.MustParseAddr("10.9.0.2"),
			Spec: machine.Spec{Hostname: "web", ImageID: "img_a", VCPUs: 2, MemMiB: 512, DiskMiB: 1024, UserData: "a secret"},
		},
		SealedUserData: []byte("sealed: \xff\x00"),
		Machine:        snapshot.Machine{Driver: "qemu", Version: "7.2", Accel: "kvm", CPU: "some CPU"},
	}, []snapshot.Part{{Name: "memory", Size: 512 << 20}, {Name: "memory.json", Size: 9, Sum: "sha256:" + strings.Repeat("0a", 32)}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestManifestIsReadAsWritten(t *testing.T) {
	text := manifestText(t)
	m, err := snapshot.ParseManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	if string(m.UserData) != "sealed: \xff\x00" || m.VM.UserData != "" || m.VM.VCPUs != 2 || m.Machine.CPU != "some CPU" || len(m.Parts) != 2 {
		t.Errorf("got %+v", m)
	}
	if again, err := m.Encode(); err != nil || !bytes.Equal(again, text) {
		t.Errorf("encoded again it is %s, %v", again, err)
	}
	if bytes.Contains(text, []byte("acc_a")) {
		t.Error("it names the owner, which other hosts do not know")
	}
}

func TestInvalidManifestsAreRefused(t *testing.T) {
	text := string(manifestText(t))
	for name, change := range map[string][2]string{
		"another format":     {`"format": 2`, `"format": 1`},
		"an unknown field":   {`"format": 2`, `"format": 2, "more": 1`},
		"a path as id":       {`"snap_a1"`, `"snap_../a1"`},
		"a path as parent":   {`"snap_b2"`, `"/etc"`},
		"an ephemeral one":   {`"manual"`, `"passing"`},
		"a name like an id":  {`"before"`, `"snap_c3"`},
		"a path as part":     {`"memory"`, `"../memory"`},
		"a repeated part":    {`"memory.json"`, `"memory"`},
		"a negative size":    {`"size": 9`, `"size": -9`},
		"a broken checksum":  {`"sha256:0a`, `"sha256:0`},
		"text after it":      {"\n}\n", "\n}\n{}"},
		"an invalid address": {`"10.9.0.2"`, `"10.9.0"`},
	} {
		changed := strings.Replace(text, change[0], change[1], 1)
		if changed == text {
			t.Fatalf("%s: the test is broken", name)
		}
		if m, err := snapshot.ParseManifest([]byte(changed)); err == nil {
			t.Errorf("%s: accepted %+v", name, m)
		}
	}
	if _, err := snapshot.ParseManifest(bytes.Repeat([]byte(" "), snapshot.MaxManifest+1)); err == nil {
		t.Error("a manifest over the limit was accepted")
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(manifestText(f))
	f.Add([]byte(`{"format":1,"id":"snap_a","kind":"warm"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := snapshot.ParseManifest(text)
		if err != nil {
			return
		}
		for _, p := range m.Parts {
			if strings.ContainsAny(p.Name, "/\x00") || p.Size < 0 {
				t.Errorf("accepted the part %+v", p)
			}
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatalf("cannot encode it again: %v", err)
		}
		if same, err := snapshot.ParseManifest(again); err != nil || !reflect.DeepEqual(len(same.Parts), len(m.Parts)) || same.ID != m.ID {
			t.Errorf("parsed again it is %+v, %v", same, err)
		}
	})
}
