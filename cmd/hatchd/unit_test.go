package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestTheSettingsOfTheUnit(t *testing.T) {
	dir := t.TempDir()
	unit, settings := filepath.Join(dir, "hatchd.service"), filepath.Join(dir, "hatchd.env")
	if got, err := ofUnit(unit, settings); err != nil || len(got) > 0 {
		t.Errorf("without a unit: %q, %v", got, err)
	}
	for path, text := range map[string]string{
		unit:     "[Service]\nExecStart=/usr/local/bin/hatchd\nEnvironment=HATCH_CGROUP=/unit\n",
		settings: "# a comment\n\nHATCH_HTTP_ADDR=:8080\n;HATCH_VMM=x\n HATCH_DATABASE_URL=\"postgres://a@b/c?d=e\"\nHATCH_API_KEY='it is=\"secret\"'\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ofUnit(unit, settings)
	want := []string{"HATCH_CGROUP=/unit", "HATCH_HTTP_ADDR=:8080", "HATCH_DATABASE_URL=postgres://a@b/c?d=e", `HATCH_API_KEY=it is="secret"`}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if err := os.Remove(settings); err != nil {
		t.Fatal(err)
	}
	if got, err := ofUnit(unit, settings); err != nil || !slices.Equal(got, want[:1]) {
		t.Errorf("without the file: %q, %v", got, err)
	}
}
