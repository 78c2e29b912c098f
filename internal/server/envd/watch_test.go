package envd

import (
	"slices"
	"testing"

	"github.com/hatchvm/hatch/internal/file"
)

// TestChanges has what a guest reports, and what the SDKs get.
func TestChanges(t *testing.T) {
	w := watch{Path: "/d"}
	for _, c := range []struct {
		change file.Change
		want   []fileChange
	}{
		{file.Change{Kind: file.Created, Path: "/d/a/b"}, []fileChange{{Name: "a/b", Type: created}}},
		{file.Change{Kind: file.Renamed, From: "/d/a", Path: "/d/b"}, []fileChange{{Name: "a", Type: renamed}, {Name: "b", Type: created}}},
		{file.Change{Kind: file.Changed, Path: "/d"}, nil},
		{file.Change{Kind: file.Removed, Path: "/d"}, []fileChange{{Type: removed}}},
		{file.Change{Kind: file.Created, Path: "/d/.hatch-partial-0"}, nil},
		{file.Change{Kind: file.Renamed, From: "/d/.hatch-partial-0", Path: "/d/b"}, []fileChange{{Name: "b", Type: created}, {Name: "b", Type: written}}},
	} {
		if got, err := w.changes(c.change); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%+v: %+v, %v", c.change, got, err)
		}
	}
	if _, err := w.changes(file.Change{Kind: file.Missed, Path: "/d"}); err == nil {
		t.Error("lost changes are no error")
	}
	if got := (watch{Path: "/"}).relative("/a/b"); got != "a/b" {
		t.Errorf("below the root: %q", got)
	}
}
