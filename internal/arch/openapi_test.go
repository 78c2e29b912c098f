package arch

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/internal/server/httpapi"
)

var accept = flag.Bool("accept", false, "make the API as it is now the one that later changes are compared with")

var (
	document = filepath.Join("..", "..", "api", "openapi.json")
	// baseline is the API that clients rely on: that of the last release or of the last
	// accepted breaking change, without its descriptions.
	baseline = filepath.Join("..", "..", "api", "openapi.baseline.json")
)

func TestOpenAPIReference(t *testing.T) {
	want := indented(t, describedAPI(t))
	if *update {
		writeFile(t, document, want)
	}
	got, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("api/openapi.json is out of date; run: go test ./internal/arch -run Reference -update")
	}
}

func TestAPIBreaksNoClient(t *testing.T) {
	now := describedAPI(t)
	if *accept {
		writeFile(t, baseline, indented(t, withoutProse(t, now)))
	}
	before, err := os.ReadFile(baseline)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range breaking(parseAPI(t, before), parseAPI(t, now)) {
		t.Errorf("breaks clients: %s", b)
	}
	if t.Failed() {
		t.Log("add what is new beside what is there; a break that is wanted is accepted as CONTRIBUTING.md says")
	}
}

func describedAPI(t *testing.T) []byte {
	t.Helper()
	text, err := httpapi.Document("dev")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func parseAPI(t *testing.T, text []byte) openAPI {
	t.Helper()
	var doc openAPI
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func indented(t *testing.T, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	return out.Bytes()
}

// withoutProse removes descriptions, which the comparison ignores.
func withoutProse(t *testing.T, text []byte) []byte {
	t.Helper()
	out, err := json.Marshal(parseAPI(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func writeFile(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
