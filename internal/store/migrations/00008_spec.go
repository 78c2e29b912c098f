package migrations

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
)

// specOf8 is the JSON in vms.spec as this migration writes it. It is not the type of the
// program, whose fields change: a released migration does not.
type specOf8 struct {
	ImageID       string            `json:"image_id"`
	TemplateID    string            `json:"template_id,omitempty"`
	Boot          json.RawMessage   `json:"boot"`
	Driver        string            `json:"driver,omitempty"`
	VCPUs         int64             `json:"vcpus"`
	MemMiB        int64             `json:"mem_mib"`
	DiskMiB       int64             `json:"disk_mib"`
	BootArgs      string            `json:"boot_args,omitempty"`
	EnableNetwork bool              `json:"network"`
	SSHKeys       json.RawMessage   `json:"ssh_keys,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	RateLimits    json.RawMessage   `json:"rate_limits,omitempty"`
}

// spec moves the spec of VMs into one column. Columns that queries, sums and references
// need stay. user_data stays because JSON cannot represent all bytes, and as the last
// column, so that lists need not read past it. vm_labels is the index of labels.
func (s steps) spec(ctx context.Context, tx *sql.Tx) error {
	if err := s.exec(ctx, tx, "ALTER TABLE vms ADD COLUMN spec TEXT NOT NULL DEFAULT ''"); err != nil {
		return err
	}
	specs, err := s.specs(ctx, tx)
	if err != nil {
		return err
	}
	for id, spec := range specs {
		text, err := json.Marshal(spec)
		if err != nil {
			return fmt.Errorf("cannot write the spec of VM %s: %w", id, err)
		}
		if err := s.exec(ctx, tx, "UPDATE vms SET spec = ? WHERE id = ?", string(text), id); err != nil {
			return err
		}
	}
	for _, column := range []string{"template_id", "boot", "vcpus", "boot_args", "enable_network", "ssh_keys", "driver", "rate_limits"} {
		if err := s.exec(ctx, tx, "ALTER TABLE vms DROP COLUMN "+column); err != nil {
			return err
		}
	}
	return s.run(ctx, tx,
		"ALTER TABLE vms ADD COLUMN user_data_last BYTEA NOT NULL DEFAULT ''",
		"UPDATE vms SET user_data_last = user_data",
		"ALTER TABLE vms DROP COLUMN user_data",
		"ALTER TABLE vms RENAME COLUMN user_data_last TO user_data")
}

func (s steps) specs(ctx context.Context, tx *sql.Tx) (map[string]*specOf8, error) {
	specs := map[string]*specOf8{}
	err := s.each(ctx, tx, `SELECT id, image_id, template_id, boot, driver, vcpus, mem_mib, disk_mib, boot_args, enable_network, ssh_keys, rate_limits FROM vms`,
		func(scan func(...any) error) error {
			var id, boot, keys, limits string
			var v specOf8
			err := scan(&id, &v.ImageID, &v.TemplateID, &boot, &v.Driver, &v.VCPUs, &v.MemMiB, &v.DiskMiB, &v.BootArgs, &v.EnableNetwork, &keys, &limits)
			v.Boot = json.RawMessage(boot)
			if keys != "null" && keys != "[]" {
				v.SSHKeys = json.RawMessage(keys)
			}
			if limits != "{}" {
				v.RateLimits = json.RawMessage(limits)
			}
			specs[id] = &v
			return err
		})
	if err != nil {
		return nil, err
	}
	return specs, s.each(ctx, tx, "SELECT vm_id, label, value FROM vm_labels", func(scan func(...any) error) error {
		var id, label, value string
		err := scan(&id, &label, &value)
		if v := specs[id]; v != nil {
			if v.Labels == nil {
				v.Labels = map[string]string{}
			}
			v.Labels[label] = value
		}
		return err
	})
}

// dropSpec reverts spec. Fields that later versions have added are lost.
func (s steps) dropSpec(ctx context.Context, tx *sql.Tx) error {
	err := s.run(ctx, tx,
		"ALTER TABLE vms ADD COLUMN template_id TEXT NOT NULL DEFAULT ''",
		"ALTER TABLE vms ADD COLUMN boot TEXT NOT NULL DEFAULT ''",
		"ALTER TABLE vms ADD COLUMN vcpus BIGINT NOT NULL DEFAULT 0",
		"ALTER TABLE vms ADD COLUMN boot_args TEXT NOT NULL DEFAULT ''",
		"ALTER TABLE vms ADD COLUMN enable_network BOOLEAN NOT NULL DEFAULT FALSE",
		"ALTER TABLE vms ADD COLUMN ssh_keys TEXT NOT NULL DEFAULT 'null'",
		"ALTER TABLE vms ADD COLUMN driver TEXT NOT NULL DEFAULT ''",
		"ALTER TABLE vms ADD COLUMN rate_limits TEXT NOT NULL DEFAULT '{}'")
	if err != nil {
		return err
	}
	specs := map[string]specOf8{}
	err = s.each(ctx, tx, "SELECT id, spec FROM vms", func(scan func(...any) error) error {
		var id, text string
		if err := scan(&id, &text); err != nil {
			return err
		}
		v := specOf8{SSHKeys: json.RawMessage("null"), RateLimits: json.RawMessage("{}")}
		err := json.Unmarshal([]byte(text), &v)
		specs[id] = v
		return err
	})
	if err != nil {
		return err
	}
	for id, v := range specs {
		err := s.exec(ctx, tx, `UPDATE vms SET template_id = ?, boot = ?, vcpus = ?, boot_args = ?, enable_network = ?, ssh_keys = ?, driver = ?, rate_limits = ? WHERE id = ?`,
			v.TemplateID, string(v.Boot), v.VCPUs, v.BootArgs, v.EnableNetwork, string(v.SSHKeys), v.Driver, string(v.RateLimits), id)
		if err != nil {
			return err
		}
	}
	return s.exec(ctx, tx, "ALTER TABLE vms DROP COLUMN spec")
}
