package api

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"
	"time"
)

func TestTimesHaveOneWidth(t *testing.T) {
	zone := time.FixedZone("", -3600)
	for want, at := range map[string]time.Time{
		`"2026-01-02T15:04:05.000Z"`: time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
		`"2026-01-02T15:04:05.120Z"`: time.Date(2026, 1, 2, 15, 4, 5, 120_000_000, time.UTC),
		`"2026-01-02T15:04:05.123Z"`: time.Date(2026, 1, 2, 14, 4, 5, 123_999_999, zone),
		`"0001-01-01T00:00:00.000Z"`: {},
	} {
		text, err := json.Marshal(struct{ At Time }{Time{at}})
		if err != nil || string(text) != `{"At":`+want+`}` {
			t.Errorf("%s: got %s, %v", want, text, err)
		}
		var back struct{ At *Time }
		if err := json.Unmarshal(text, &back); err != nil || !back.At.Equal(at.Truncate(time.Millisecond)) {
			t.Errorf("%s is read as %v, %v", text, back.At, err)
		}
	}
}

// TestAllTimesAreTimes looks for fields that would be written in varying widths.
func TestAllTimesAreTimes(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			field, isField := n.(*ast.Field)
			if !isField || field.Tag == nil {
				return true
			}
			ast.Inspect(field.Type, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.SelectorExpr:
					if n.Sel.Name == "Time" {
						t.Errorf("%s: a field of type time.Time; want Time, which has one width", fset.Position(n.Pos()))
					}
				case *ast.Ident:
					if n.Name == "Time" {
						found++
					}
				}
				return true
			})
			return true
		})
	}
	if found < 20 {
		t.Errorf("only %d fields with times were found", found)
	}
}
