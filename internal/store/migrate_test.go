package store

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// openAt opens a database whose schema is as it was at a version.
func openAt(t *testing.T, dsn string, version int64) *Store {
	t.Helper()
	make := openSQLite
	if strings.HasPrefix(dsn, "postgres://") {
		make = openPostgres
	} else {
		noError(t, os.Truncate(dsn, 0))
	}
	db, err := make(dsn)
	noError(t, err)
	db.host = testHost
	s := newStore(db)
	t.Cleanup(func() { noError(t, s.Close()) })
	m, err := s.migrator()
	noError(t, err)
	_, err = m.UpTo(t.Context(), version)
	noError(t, err)
	s.mustExec(t, "INSERT INTO accounts (id, name, created_at) VALUES ('acc_a', 'acc_a', 0)")
	return s
}

// anOldImage makes img_a in a schema before that of users.
func anOldImage(t *testing.T, s *Store) {
	t.Helper()
	s.mustExec(t, `INSERT INTO images (id, owner_id, name, kernel, kernel_version, modules_path, rootfs, rootfs_format, disk_mode, boot_args, cloud_init, created_at)
		VALUES ('img_a', 'acc_a', '', '{}', '', '', '{}', 'ext4', 'overlay', '', TRUE, 0)`)
}

func (s *Store) mustExec(t *testing.T, query string, args ...any) {
	t.Helper()
	noError(t, s.write(t.Context(), func(tx *tx) error {
		_, err := tx.exec(t.Context(), query, args...)
		return err
	}))
}

const (
	oldBoot = `{"image_id":"img_a","kernel":{"path":"/k","digest":"sha256:aa","size":7,"mod_time":"2026-01-02T03:04:05.000006Z","inode":3},` +
		`"rootfs":{"path":"/r","digest":"sha256:bb","size":8,"mod_time":"2026-01-02T03:04:05.000006Z","inode":4},"rootfs_format":"ext4","modules_path":"/m","disk_mode":"copy","boot_args":"b","cloud_init":true}`
	oldConditions = `{"network":{"status":"true","changed_at":"2026-01-02T03:04:05.000006Z"},"agent":{"status":"","changed_at":"0001-01-01T00:00:00Z"},"cloud_init":{"status":"","changed_at":"0001-01-01T00:00:00Z"}}`
	insertOldVM   = `INSERT INTO vms (id, owner_id, name, image_id, template_id, boot, intent, state, state_reason, conditions,
		vcpus, mem_mib, disk_mib, boot_args, enable_network, guest_ip, guest_mac, tap_number, tap_name, ssh_port, uid, last_guest_ip, last_guest_mac,
		ssh_keys, driver, machine, provisioned, created_at, updated_at, started_at, revision, snapshot_id, instance, copying, rate_limits, user_data)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
)

// A VM in a row of the schema that had a column for each value is the same VM
// after the step to vms.spec, and its row the same after the step back.
func TestVMsSurviveTheStepToSpecs(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			s := openAt(t, b.dsn(t), 7)
			anOldImage(t, s)
			insertOld(t, s)
			before := oldColumns(t, s)
			noError(t, s.prepare(t.Context(), Directory{HostID: testHost}))
			for _, want := range oldVMs() {
				got, err := s.VM(t.Context(), access.Owner("acc_a"), want.ID)
				noError(t, err)
				same(t, got, want)
			}
			all, err := s.AllVMs(t.Context())
			noError(t, err)
			equal(t, len(all), len(oldVMs())) // they are this host's
			if ids, _ := list(t, s, vm.Filter{Labels: map[string]string{"team": "a"}}); ids != "full" {
				t.Errorf("found by its label: %q", ids)
			}
			createVM(t, s, newVM("vm_new"))
			m, err := s.migrator()
			noError(t, err)
			_, err = m.DownTo(t.Context(), 7)
			noError(t, err)
			s.mustExec(t, "DELETE FROM vms WHERE id = 'vm_new'")
			equal(t, oldColumns(t, s), before)
		})
	}
}

func insertOld(t *testing.T, s *Store) {
	t.Helper()
	s.mustExec(t, insertOldVM, "vm_full", "acc_a", "web", "img_a", "tpl_a", oldBoot, "running", "running", "why", oldConditions,
		2, 512, 1024, `quiet "x\y"`, true, int64(0x0A090002), "02:fc:00:00:00:02", 3, "hatch3", 20022, 900001, nil, nil,
		`["ssh-ed25519 AAAA"]`, "qemu", `{"driver":"qemu","id":"vm_full","pid":4711,"start_time":9}`, true, 1_000_000, 2_000_000, 3_000_000, 7,
		"snap_a", "vm_orig", "warm", `{"disk":{"ops_per_second":100}}`, []byte("#!/bin/sh\n\x00\xff"))
	for label, value := range map[string]string{"team": "a", "quoted\t": "\"ä\\"} {
		s.mustExec(t, "INSERT INTO vm_labels (vm_id, label, value) VALUES ('vm_full', ?, ?)", label, value)
	}
	s.mustExec(t, insertOldVM, "vm_bare", "acc_a", "", "img_a", "", "{}", "stopped", "stopped", "", "{}",
		1, 64, 64, "", false, nil, nil, nil, nil, nil, nil, nil, nil,
		"null", "fake", nil, false, 4_000_000, 4_000_000, nil, 1, "", "", "", "{}", []byte{})
}

func oldVMs() []vm.VM {
	file := func(path, digest string, size int64, inode uint64) image.File {
		return image.File{Path: path, Digest: digest, Size: size, ModTime: oldTime, Inode: inode}
	}
	started := fromMicros(3_000_000)
	return []vm.VM{
		{
			ID: "vm_full", OwnerID: "acc_a", Name: "web",
			Spec: machine.Spec{
				ImageID: "img_a", TemplateID: "tpl_a", Driver: "qemu",
				Boot: image.Boot{
					ImageID: "img_a", Kernel: file("/k", "sha256:aa", 7, 3), Rootfs: file("/r", "sha256:bb", 8, 4),
					RootfsFormat: "ext4", ModulesPath: "/m", DiskMode: image.DiskCopy, BootArgs: "b", CloudInit: true,
				},
				VCPUs: 2, MemMiB: 512, DiskMiB: 1024, BootArgs: `quiet "x\y"`, EnableNetwork: true,
				UserData: "#!/bin/sh\n\x00\xff", SSHKeys: []string{"ssh-ed25519 AAAA"}, Labels: map[string]string{"team": "a", "quoted\t": "\"ä\\"},
				RateLimits: vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 100}},
			},
			Intent: vm.IntentRunning, State: vm.Running, StateReason: "why",
			Conditions: vm.Conditions{Network: vm.Condition{Status: vm.True, ChangedAt: oldTime}},
			Lease:      network.Lease{Address: addr("10.9.0.2"), MAC: net.HardwareAddr{2, 0xfc, 0, 0, 0, 2}, Tap: "hatch3", SSHPort: 20022, UID: 900001},
			Instance:   "vm_orig", Machine: &vmm.Handle{Driver: "qemu", ID: "vm_full", PID: 4711, StartTime: 9}, Provisioned: true,
			Unconfirmed: vm.FromWarm, SnapshotID: "snap_a", CreatedAt: fromMicros(1_000_000), UpdatedAt: fromMicros(2_000_000), StartedAt: &started,
		},
		{
			ID: "vm_bare", OwnerID: "acc_a", Intent: vm.IntentStopped, State: vm.Stopped,
			Spec:      machine.Spec{ImageID: "img_a", Driver: "fake", VCPUs: 1, MemMiB: 64, DiskMiB: 64},
			CreatedAt: fromMicros(4_000_000), UpdatedAt: fromMicros(4_000_000),
		},
	}
}

var oldTime = fromMicros(1_767_323_045_000_006)

// oldColumns returns the columns that the step replaces.
func oldColumns(t *testing.T, s *Store) (rows []oldRow) {
	t.Helper()
	noError(t, s.reads.Select(&rows, "SELECT id, template_id, boot, vcpus, boot_args, enable_network, ssh_keys, driver, rate_limits, user_data FROM vms ORDER BY id"))
	return rows
}

type oldRow struct {
	ID            string `db:"id"`
	TemplateID    string `db:"template_id"`
	Boot          string `db:"boot"`
	VCPUs         int    `db:"vcpus"`
	BootArgs      string `db:"boot_args"`
	EnableNetwork bool   `db:"enable_network"`
	SSHKeys       string `db:"ssh_keys"`
	Driver        string `db:"driver"`
	RateLimits    string `db:"rate_limits"`
	UserData      []byte `db:"user_data"`
}
