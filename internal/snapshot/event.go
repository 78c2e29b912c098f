package snapshot

import (
	"fmt"

	"github.com/hatchvm/hatch/internal/event"
)

// eventData is the data of events about a snapshot.
type eventData struct {
	ID       string `json:"snapshot_id"`
	Name     string `json:"name,omitempty"`
	Kind     Kind   `json:"kind"`
	Bytes    int64  `json:"bytes"`
	ParentID string `json:"parent_id,omitempty"`
}

// CreatedEvent is the event of a snapshot that is durable. vmName is its VM's
// current name, or "".
func CreatedEvent(s Snapshot, vmName string) event.Event {
	return s.about(event.SnapshotCreated, fmt.Sprintf("snapshot %s was taken; it takes %d MiB on disk", s.label(), s.Bytes>>20), vmName)
}

// DeletedEvent is the event of a deleted snapshot.
func DeletedEvent(s Snapshot, vmName string) event.Event {
	return s.about(event.SnapshotDeleted, fmt.Sprintf("snapshot %s was deleted", s.label()), vmName)
}

// label returns the name and the id, or the id where there is no name.
func (s Snapshot) label() string {
	if s.Name == "" {
		return s.ID
	}
	return fmt.Sprintf("%s (%s)", s.Name, s.ID)
}

func (s Snapshot) about(t event.Type, message, vmName string) event.Event {
	e := event.Of(t, message, eventData{s.ID, s.Name, s.Kind, s.Bytes, s.ParentID})
	e.OwnerID, e.VMID, e.VMName = s.OwnerID, s.VMID, vmName
	return e
}
