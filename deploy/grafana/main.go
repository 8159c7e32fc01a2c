// Command grafana prints the dashboard:
//
//	go run ./deploy/grafana > deploy/grafana/dashboard.json
//
// Each row has a file, which lists its panels. Places, numbers and names of queries follow from the
// order. Recording rules of ../prometheus/rules.yml have what would be too expensive to read.
package main

import (
	"encoding/json"
	"io"
	"log"
	"os"
)

func main() {
	if err := write(os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// write writes the dashboard as JSON.
func write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(newDashboard())
}
