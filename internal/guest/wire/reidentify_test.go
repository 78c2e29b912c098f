package wire

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// cloneHandler is the agent of a clone.
type cloneHandler struct {
	*fakeHandler
	got  []Identity
	now  time.Time
	seed []byte
	err  error
}

func (d *cloneHandler) Reidentify(_ context.Context, now time.Time, seed []byte, as Identity) (Self, error) {
	d.got, d.now, d.seed = append(d.got, as), now, seed
	return Self{Hostname: as.Hostname, MAC: as.NIC.MAC, Address: as.NIC.Address, MachineID: "m"}, d.err
}

func someIdentity() Identity {
	return Identity{CloneID: "b1", InstanceID: "vm_abc", Hostname: "clone-1", NIC: &NIC{
		MAC: "02:fc:00:00:00:0b", Address: netip.MustParsePrefix("172.16.0.11/24"), Gateway: netip.MustParseAddr("172.16.0.1"),
	}, CloudInit: true}
}

func TestReidentifyReachesTheAgent(t *testing.T) {
	d := &cloneHandler{fakeHandler: newFakeHandler()}
	c, _ := connectTo(t, d)
	as, began := someIdentity(), time.Now()
	self, err := c.Reidentify(t.Context(), as, []byte("seed"))
	want := Self{Hostname: "clone-1", MAC: as.NIC.MAC, Address: as.NIC.Address, MachineID: "m"}
	if err != nil || self != want {
		t.Errorf("got %+v, %v", self, err)
	}
	if len(d.got) != 1 || !reflect.DeepEqual(d.got[0], as) || string(d.seed) != "seed" || d.now.Before(began) {
		t.Errorf("got %+v, %q, %v", d.got, d.seed, d.now)
	}
	d.err = errors.New("it has no name")
	var answer *RemoteError
	if _, err := c.Reidentify(t.Context(), as, nil); !errors.As(err, &answer) || answer.Code != CodeFailed || answer.Message != "it has no name" {
		t.Errorf("got %v", err)
	}
}

func TestReidentifyIsUnknownToAnOldAgent(t *testing.T) {
	c, _ := connectTo(t, newFakeHandler())
	var answer *RemoteError
	if _, err := c.Reidentify(t.Context(), someIdentity(), nil); !errors.As(err, &answer) || answer.Code != CodeUnknownOp {
		t.Errorf("got %v", err)
	}
}

func TestInvalidIdentityIsRefused(t *testing.T) {
	d := &cloneHandler{fakeHandler: newFakeHandler()}
	c, _ := connectTo(t, d)
	for field, spoil := range map[string]func(*Identity){
		"birth":       func(i *Identity) { i.CloneID = "" },
		"instance_id": func(i *Identity) { i.InstanceID = "../x" },
		"hostname":    func(i *Identity) { i.Hostname = "a\nb" },
		"nic.mac":     func(i *Identity) { i.NIC.MAC = "01:00:00:00:00:01" },
		"nic.address": func(i *Identity) { i.NIC.Address = netip.Prefix{} },
		"nic.gateway": func(i *Identity) { i.NIC.Gateway = netip.MustParseAddr("10.0.0.1") },
	} {
		as := someIdentity()
		spoil(&as)
		var answer *RemoteError
		_, err := c.Reidentify(t.Context(), as, nil)
		if !errors.As(err, &answer) || answer.Code != CodeInvalid || !strings.Contains(answer.Message, field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if len(d.got) > 0 {
		t.Errorf("the handler got %+v", d.got)
	}
}

// FuzzReidentify checks that accepted arguments can be written into files.
func FuzzReidentify(f *testing.F) {
	good, err := json.Marshal(ReidentifyArgs{WokenArgs: WokenArgs{UnixNanos: 1, Seed: []byte{1}}, Identity: someIdentity()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"unix_ns":1,"birth":"b","instance_id":"vm_1","hostname":"a"}`))
	f.Add([]byte(`{"unix_ns":1,"birth":"b","instance_id":"vm_1","hostname":"a","nic":{"mac":"02:00:00:00:00:01","address":"fe80::1%eth0/64"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		args, err := parseReidentify(raw)
		if err != nil {
			return
		}
		if args.UnixNanos <= 0 || len(args.Seed) > maxSeed {
			t.Errorf("the time %d and a seed of %d bytes were accepted", args.UnixNanos, len(args.Seed))
		}
		if text := args.InstanceID + args.Hostname; text == "" || strings.ContainsAny(text, "/\n\r\x00 \t#") {
			t.Errorf("%q was accepted", text)
		}
		if n := args.NIC; n != nil && (!n.Address.IsValid() || n.Address.Addr().Zone() != "") {
			t.Errorf("%+v was accepted", n)
		}
	})
}
