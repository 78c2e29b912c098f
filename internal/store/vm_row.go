package store

import (
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/vm"
)

// vmRow is a VM as stored in its table. Spec is the spec of the VM; image_id,
// mem_mib and disk_mib repeat values of it that queries use, and the table
// vm_labels its labels.
type vmRow struct {
	ID           string           `db:"id"`
	OwnerID      string           `db:"owner_id"`
	Name         string           `db:"name"`
	ImageID      string           `db:"image_id"`
	Intent       string           `db:"intent"`
	State        string           `db:"state"`
	StateReason  string           `db:"state_reason"`
	Conditions   string           `db:"conditions"`
	MemMiB       int              `db:"mem_mib"`
	DiskMiB      int              `db:"disk_mib"`
	GuestIP      sql.Null[int64]  `db:"guest_ip"`
	GuestMAC     sql.Null[string] `db:"guest_mac"`
	TapNumber    sql.Null[int64]  `db:"tap_number"`
	TapName      sql.Null[string] `db:"tap_name"`
	SSHPort      sql.Null[int64]  `db:"ssh_port"`
	UID          sql.Null[int64]  `db:"uid"`
	LastGuestIP  sql.Null[int64]  `db:"last_guest_ip"`
	LastGuestMAC sql.Null[string] `db:"last_guest_mac"`
	Machine      sql.Null[string] `db:"machine"`
	Provisioned  bool             `db:"provisioned"`
	CreatedAt    int64            `db:"created_at"`
	UpdatedAt    int64            `db:"updated_at"`
	StartedAt    sql.NullInt64    `db:"started_at"`
	Revision     int64            `db:"revision"`
	SnapshotID   string           `db:"snapshot_id"`
	Instance     string           `db:"instance"`
	Copying      string           `db:"copying"`
	Autostart    string           `db:"autostart"`
	Spec         string           `db:"spec"`
	UserData     []byte           `db:"user_data"` // encrypted
	HostID       string           `db:"host_id"`
	Ports        string           `db:"ports"` // JSON: host ports by the guest's; "" for none
}

// vmColumns are all columns that are read; user_data is the last. host_id is
// only written and compared.
var vmColumns = []string{
	"id", "owner_id", "name", "image_id",
	"intent", "state", "state_reason", "conditions", "mem_mib", "disk_mib",
	"guest_ip", "guest_mac", "tap_number", "tap_name", "ssh_port", "uid", "last_guest_ip", "last_guest_mac",
	"machine", "provisioned", "created_at", "updated_at", "started_at", "revision", "snapshot_id", "instance", "copying", "autostart", "ports", "spec", "user_data",
}

var (
	selectVM = "SELECT " + strings.Join(vmColumns, ", ") + " FROM vms"
	// selectListedVM leaves user_data out.
	selectListedVM = "SELECT " + strings.Join(vmColumns[:len(vmColumns)-1], ", ") + " FROM vms"
	insertVM       = "INSERT INTO vms (host_id, " + strings.Join(vmColumns, ", ") + ") VALUES (:host_id, :" + strings.Join(vmColumns, ", :") + ")"
	updateObserved = updateVM("intent", "state", "state_reason", "conditions", "machine", "provisioned", "started_at", "snapshot_id", "copying", "autostart", "updated_at")
	updateLease    = updateVM("state", "state_reason", "guest_ip", "guest_mac", "tap_number", "tap_name", "ssh_port", "ports", "uid", "updated_at")
)

func updateVM(columns ...string) string {
	sets := make([]string, len(columns))
	for i, c := range columns {
		sets[i] = c + " = :" + c
	}
	return "UPDATE vms SET " + strings.Join(sets, ", ") + " WHERE id = :id"
}

// rowOf returns the row of a new VM.
func rowOf(keys *secret.Keyring, v vm.VM) (vmRow, error) {
	row := vmRow{
		ID: v.ID, OwnerID: v.OwnerID, Name: v.Name, ImageID: v.ImageID, MemMiB: v.MemMiB, DiskMiB: v.DiskMiB,
		Instance: v.Instance, UserData: keys.Seal(placeOfVM(v.ID), []byte(v.UserData)),
		CreatedAt: micros(v.CreatedAt), UpdatedAt: micros(v.UpdatedAt), Revision: 1,
	}
	if err := row.setLease(v.Lease); err != nil {
		return vmRow{}, err
	}
	spec := v.Spec
	spec.UserData = "" // JSON cannot hold bytes that are not UTF-8
	var err error
	if row.Spec, err = toJSON(spec); err != nil {
		return vmRow{}, err
	}
	return row, row.setObserved(v)
}

// setObserved copies the fields that change during a VM's life.
func (r *vmRow) setObserved(v vm.VM) (err error) {
	r.Intent, r.State, r.StateReason = string(v.Intent), string(v.State), printable(v.StateReason)
	r.Provisioned, r.StartedAt = v.Provisioned, optionalMicros(v.StartedAt)
	r.SnapshotID, r.Copying, r.Autostart = v.SnapshotID, string(v.Unconfirmed), string(v.Autostart)
	if r.Conditions, err = toJSON(v.Conditions); err != nil {
		return err
	}
	r.Machine = sql.Null[string]{}
	if v.Machine != nil {
		r.Machine.Valid = true
		r.Machine.V, err = toJSON(v.Machine)
	}
	return err
}

func (r *vmRow) setLease(l network.Lease) (err error) {
	r.GuestIP = sql.Null[int64]{}
	if l.Address.IsValid() {
		r.GuestIP = sql.Null[int64]{V: addressNumber(l.Address), Valid: true}
	}
	r.GuestMAC = optional(l.MAC.String())
	r.TapName = optional(l.Tap)
	r.SSHPort = optional(int64(l.SSHPort))
	r.UID = optional(int64(l.UID))
	r.Ports = ""
	if len(l.Ports) > 0 {
		r.Ports, err = toJSON(l.Ports)
	}
	return err
}

// publishedPorts returns the host ports of the row, but the SSH port.
func (r *vmRow) publishedPorts() (numbers []int64) {
	var ports map[int]int
	_ = fromJSON(r.Ports, &ports) // a row that cannot be read has none
	for _, host := range ports {
		numbers = append(numbers, int64(host))
	}
	return numbers
}

// vm returns the VM of a row. Nil stands for empty lists and maps.
func (r *vmRow) vm(keys *secret.Keyring) (vm.VM, error) {
	v := vm.VM{
		ID: r.ID, OwnerID: r.OwnerID, Name: r.Name,
		Intent: vm.Intent(r.Intent), State: vm.State(r.State), StateReason: r.StateReason, Instance: r.Instance,
		Provisioned: r.Provisioned, SnapshotID: r.SnapshotID, Unconfirmed: vm.CloneKind(r.Copying), Autostart: vm.Autostart(r.Autostart),
		CreatedAt: fromMicros(r.CreatedAt), UpdatedAt: fromMicros(r.UpdatedAt), StartedAt: optionalTime(r.StartedAt), Revision: r.Revision,
		Lease: network.Lease{Tap: r.TapName.V, SSHPort: int(r.SSHPort.V), UID: int(r.UID.V), MAC: parseMAC(r.GuestMAC)},
	}
	if r.GuestIP.Valid {
		v.Lease.Address = addressOf(r.GuestIP.V)
	}
	for _, field := range []struct {
		text string
		into any
	}{{r.Spec, &v.Spec}, {r.Conditions, &v.Conditions}, {r.Machine.V, &v.Machine}, {r.Ports, &v.Lease.Ports}} {
		if err := fromJSON(field.text, field.into); err != nil {
			return vm.VM{}, fmt.Errorf("cannot read VM %s: %w", r.ID, err)
		}
	}
	userData, err := keys.Open(placeOfVM(r.ID), r.UserData)
	if err != nil {
		return vm.VM{}, fmt.Errorf("cannot read VM %s: %w", r.ID, err)
	}
	v.UserData = string(userData)
	return v, nil
}

// parseMAC parses a stored MAC; nil for NULL.
func parseMAC(text sql.Null[string]) net.HardwareAddr {
	mac, err := net.ParseMAC(text.V)
	if err != nil {
		return nil
	}
	return mac
}

func addressNumber(a netip.Addr) int64 {
	b := a.As4()
	return int64(binary.BigEndian.Uint32(b[:]))
}

func addressOf(n int64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

func toJSON(v any) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("cannot write JSON: %w", err)
	}
	return string(text), nil
}

// fromJSON does not change into if the text is empty.
func fromJSON(text string, into any) error {
	if text == "" || text == "null" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("cannot read JSON: %w", err)
	}
	return nil
}

// idsPerQuery keeps a list of ids below both databases' limit on parameters.
const idsPerQuery = 500
