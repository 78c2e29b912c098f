package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/vm"
)

// vmRow is a VM as its table has it. Labels are a table of their own.
type vmRow struct {
	ID            string           `db:"id"`
	OwnerID       string           `db:"owner_id"`
	Name          string           `db:"name"`
	ImageID       string           `db:"image_id"`
	TemplateID    string           `db:"template_id"`
	Boot          string           `db:"boot"`
	Intent        string           `db:"intent"`
	State         string           `db:"state"`
	StateReason   string           `db:"state_reason"`
	Conditions    string           `db:"conditions"`
	VCPUs         int              `db:"vcpus"`
	MemMiB        int              `db:"mem_mib"`
	DiskMiB       int              `db:"disk_mib"`
	BootArgs      string           `db:"boot_args"`
	EnableNetwork bool             `db:"enable_network"`
	GuestIP       sql.Null[int64]  `db:"guest_ip"`
	GuestMAC      sql.Null[string] `db:"guest_mac"`
	TapNumber     sql.Null[int64]  `db:"tap_number"`
	TapName       sql.Null[string] `db:"tap_name"`
	SSHPort       sql.Null[int64]  `db:"ssh_port"`
	UID           sql.Null[int64]  `db:"uid"`
	LastGuestIP   sql.Null[int64]  `db:"last_guest_ip"`
	LastGuestMAC  sql.Null[string] `db:"last_guest_mac"`
	SSHKeys       string           `db:"ssh_keys"`
	Driver        string           `db:"driver"`
	Machine       sql.Null[string] `db:"machine"`
	Provisioned   bool             `db:"provisioned"`
	CreatedAt     int64            `db:"created_at"`
	UpdatedAt     int64            `db:"updated_at"`
	StartedAt     sql.NullInt64    `db:"started_at"`
	Revision      int64            `db:"revision"`
	SnapshotID    string           `db:"snapshot_id"`
	Instance      string           `db:"instance"`
	Copying       string           `db:"copying"`
	RateLimits    string           `db:"rate_limits"`
	UserData      []byte           `db:"user_data"`
}

// vmColumns are all columns; user_data is the last.
var vmColumns = []string{
	"id", "owner_id", "name", "image_id", "template_id", "boot",
	"intent", "state", "state_reason", "conditions",
	"vcpus", "mem_mib", "disk_mib", "boot_args", "enable_network",
	"guest_ip", "guest_mac", "tap_number", "tap_name", "ssh_port", "uid", "last_guest_ip", "last_guest_mac",
	"ssh_keys", "driver", "machine", "provisioned",
	"created_at", "updated_at", "started_at", "revision", "snapshot_id", "instance", "copying", "rate_limits", "user_data",
}

var (
	selectVM = "SELECT " + strings.Join(vmColumns, ", ") + " FROM vms"
	// selectListedVM leaves user_data out.
	selectListedVM = "SELECT " + strings.Join(vmColumns[:len(vmColumns)-1], ", ") + " FROM vms"
	insertVM       = "INSERT INTO vms (" + strings.Join(vmColumns, ", ") + ") VALUES (:" + strings.Join(vmColumns, ", :") + ")"
	updateObserved = updateVM("intent", "state", "state_reason", "conditions", "driver", "machine", "provisioned", "started_at", "snapshot_id", "copying", "updated_at")
	updateLease    = updateVM("state", "state_reason", "guest_ip", "guest_mac", "tap_number", "tap_name", "ssh_port", "uid", "updated_at")
)

func updateVM(columns ...string) string {
	sets := make([]string, len(columns))
	for i, c := range columns {
		sets[i] = c + " = :" + c
	}
	return "UPDATE vms SET " + strings.Join(sets, ", ") + " WHERE id = :id"
}

// rowOf returns the row of a new VM.
func rowOf(v vm.VM) (vmRow, error) {
	row := vmRow{
		ID: v.ID, OwnerID: v.OwnerID, Name: v.Name, ImageID: v.ImageID, TemplateID: v.TemplateID,
		VCPUs: v.VCPUs, MemMiB: v.MemMiB, DiskMiB: v.DiskMiB,
		BootArgs: v.BootArgs, EnableNetwork: v.EnableNetwork, Instance: v.Instance, UserData: []byte(v.UserData),
		CreatedAt: micros(v.CreatedAt), UpdatedAt: micros(v.UpdatedAt), Revision: 1,
	}
	row.setLease(v.Lease)
	var err error
	if row.Boot, err = toJSON(v.Boot); err != nil {
		return vmRow{}, err
	}
	if row.SSHKeys, err = toJSON(v.SSHKeys); err != nil {
		return vmRow{}, err
	}
	if row.RateLimits, err = toJSON(v.RateLimits); err != nil {
		return vmRow{}, err
	}
	return row, row.setObserved(v)
}

// setObserved takes over what changes in a VM's life.
func (r *vmRow) setObserved(v vm.VM) (err error) {
	r.Intent, r.State, r.StateReason = string(v.Intent), string(v.State), printable(v.StateReason)
	r.Driver, r.Provisioned, r.StartedAt = v.Driver, v.Provisioned, optionalMicros(v.StartedAt)
	r.SnapshotID, r.Copying = v.SnapshotID, string(v.Copying)
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

func (r *vmRow) setLease(l vm.Lease) {
	r.GuestIP = sql.Null[int64]{}
	if l.Address.IsValid() {
		r.GuestIP = sql.Null[int64]{V: addressNumber(l.Address), Valid: true}
	}
	r.GuestMAC = optional(l.MAC.String())
	r.TapName = optional(l.Tap)
	r.SSHPort = optional(int64(l.SSHPort))
	r.UID = optional(int64(l.UID))
}

// vm returns the VM of a row. Nil stands for empty lists and maps.
func (r *vmRow) vm(labels map[string]string) (vm.VM, error) {
	v := vm.VM{
		ID: r.ID, OwnerID: r.OwnerID, Name: r.Name, ImageID: r.ImageID, TemplateID: r.TemplateID,
		Intent: vm.Intent(r.Intent), State: vm.State(r.State), StateReason: r.StateReason,
		VCPUs: r.VCPUs, MemMiB: r.MemMiB, DiskMiB: r.DiskMiB,
		BootArgs: r.BootArgs, EnableNetwork: r.EnableNetwork, Instance: r.Instance, UserData: string(r.UserData),
		Driver: r.Driver, Provisioned: r.Provisioned, SnapshotID: r.SnapshotID, Copying: vm.Copying(r.Copying),
		CreatedAt: fromMicros(r.CreatedAt), UpdatedAt: fromMicros(r.UpdatedAt), StartedAt: optionalTime(r.StartedAt),
	}
	if len(labels) > 0 {
		v.Labels = labels
	}
	v.Lease = vm.Lease{Tap: r.TapName.V, SSHPort: int(r.SSHPort.V), UID: int(r.UID.V), MAC: parseMAC(r.GuestMAC)}
	if r.GuestIP.Valid {
		v.Lease.Address = addressOf(r.GuestIP.V)
	}
	for _, field := range []struct {
		text string
		into any
	}{{r.Boot, &v.Boot}, {r.Conditions, &v.Conditions}, {r.SSHKeys, &v.SSHKeys}, {r.RateLimits, &v.RateLimits}, {r.Machine.V, &v.Machine}} {
		if err := fromJSON(field.text, field.into); err != nil {
			return vm.VM{}, fmt.Errorf("cannot read VM %s: %w", r.ID, err)
		}
	}
	return v, nil
}

// parseMAC returns nil for NULL. What is stored was written by String.
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

// fromJSON leaves into alone when there is no text.
func fromJSON(text string, into any) error {
	if text == "" || text == "null" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("cannot read JSON: %w", err)
	}
	return nil
}

// idsPerQuery keeps a list of ids below both databases' bound on parameters.
const idsPerQuery = 500

// labelsOf returns the labels of the VMs that have any, by id.
func labelsOf(ctx context.Context, q querier, ids []string) (map[string]map[string]string, error) {
	labels := map[string]map[string]string{}
	for chunk := range slices.Chunk(ids, idsPerQuery) {
		query, args, err := sqlx.In("SELECT vm_id, label, value FROM vm_labels WHERE vm_id IN (?)", chunk)
		if err != nil {
			return nil, fmt.Errorf("cannot read labels: %w", err)
		}
		var rows []struct {
			VMID  string `db:"vm_id"`
			Label string `db:"label"`
			Value string `db:"value"`
		}
		if err := selectAll(ctx, q, &rows, query, args...); err != nil {
			return nil, fmt.Errorf("cannot read labels: %w", err)
		}
		for _, r := range rows {
			if labels[r.VMID] == nil {
				labels[r.VMID] = map[string]string{}
			}
			labels[r.VMID][r.Label] = r.Value
		}
	}
	return labels, nil
}
