package httpapi

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/hatchvm/hatch/api"
)

// appendVM appends v as encoding/json would write it; a test compares the two.
// Long lists of VMs are asked for often, and this takes a fifth of the time.
func appendVM(b []byte, v *api.VM) []byte {
	b = appendText(append(b, `{"id":`...), v.ID)
	b = appendField(b, `,"name":`, v.Name)
	b = appendText(append(b, `,"image_id":`...), v.ImageID)
	b = appendField(b, `,"template_id":`, v.TemplateID)
	b = appendText(append(b, `,"state":`...), v.State)
	b = appendField(b, `,"state_reason":`, v.StateReason)
	b = appendList(b, `,"conditions":`, v.Conditions, appendCondition)
	b = strconv.AppendInt(append(b, `,"vcpu_count":`...), int64(v.VCPUCount), 10)
	b = strconv.AppendInt(append(b, `,"mem_mib":`...), int64(v.MemMiB), 10)
	b = strconv.AppendInt(append(b, `,"disk_mib":`...), int64(v.DiskMiB), 10)
	b = appendField(b, `,"boot_args":`, v.BootArgs)
	b = appendField(b, `,"guest_ip":`, v.GuestIP)
	b = appendField(b, `,"guest_mac":`, v.GuestMAC)
	b = appendField(b, `,"tap_name":`, v.TapName)
	if v.SSHPort != 0 {
		b = strconv.AppendInt(append(b, `,"ssh_port":`...), int64(v.SSHPort), 10)
	}
	b = appendField(b, `,"socket_path":`, v.SocketPath)
	b = appendSleep(b, v.Sleep)
	b = appendField(b, `,"snapshot_id":`, v.SnapshotID)
	b = appendField(b, `,"user_data":`, v.UserData)
	b = strconv.AppendBool(append(b, `,"enable_network":`...), v.EnableNetwork)
	b = appendLabels(b, v.Labels)
	b = appendList(b, `,"ssh_authorized_keys":`, v.SSHAuthorizedKeys, appendText)
	b = appendRateLimits(b, v.RateLimits)
	b = appendField(b, `,"vmm":`, v.VMM)
	b = appendTime(append(b, `,"created_at":`...), v.CreatedAt)
	b = appendTime(append(b, `,"updated_at":`...), v.UpdatedAt)
	if v.StartedAt != nil {
		b = appendTime(append(b, `,"started_at":`...), *v.StartedAt)
	}
	return append(b, '}')
}

func appendSleep(b []byte, s *api.Sleep) []byte {
	if s == nil {
		return b
	}
	b = appendTime(append(b, `,"sleep":{"taken_at":`...), s.TakenAt)
	b = strconv.AppendBool(append(b, `,"durable":`...), s.Durable)
	b = strconv.AppendInt(append(b, `,"size_bytes":`...), s.SizeBytes, 10)
	return append(b, '}')
}

// appendRateLimits leaves the few that have some to encoding/json.
func appendRateLimits(b []byte, l *api.RateLimits) []byte {
	if l == nil {
		return b
	}
	text, _ := json.Marshal(l) // numbers can always be encoded
	return append(append(b, `,"rate_limits":`...), text...)
}

func appendCondition(b []byte, c api.Condition) []byte {
	b = appendText(append(b, `{"type":`...), c.Type)
	b = appendText(append(b, `,"status":`...), c.Status)
	b = appendField(b, `,"reason":`, c.Reason)
	b = appendField(b, `,"message":`, c.Message)
	b = appendTime(append(b, `,"changed_at":`...), c.ChangedAt)
	return append(b, '}')
}

func appendLabels(b []byte, labels map[string]string) []byte {
	if len(labels) == 0 {
		return b
	}
	b = append(b, `,"labels":`...)
	separator := byte('{')
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		b = appendText(append(b, separator), key)
		b = appendText(append(b, ':'), labels[key])
		separator = ','
	}
	return append(b, '}')
}

// appendList appends an optional array.
func appendList[T any](b []byte, name string, items []T, appendItem func([]byte, T) []byte) []byte {
	if len(items) == 0 {
		return b
	}
	b = append(b, name...)
	separator := byte('[')
	for _, item := range items {
		b = appendItem(append(b, separator), item)
		separator = ','
	}
	return append(b, ']')
}

// appendField appends an optional string.
func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendText(append(b, name...), value)
}

func appendTime(b []byte, t time.Time) []byte {
	b = t.AppendFormat(append(b, '"'), time.RFC3339Nano)
	return append(b, '"')
}

// appendText appends a JSON string. All but plain ASCII is left to
// encoding/json.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return appendEscaped(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendEscaped(b []byte, s string) []byte {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string can always be encoded
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...)
}
