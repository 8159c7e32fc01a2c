//go:build linux

package deploy

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"ephemeral_port_exporter/deploy/deploytest"
)

var updatePlot = flag.Bool("update-plot", false, "draw docs/growth.svg from the table of docs/cost.md")

// TestGrowth checks that the plot shows the table of growth:
//
//	go test ./deploy -run TestGrowth -update-plot
func TestGrowth(t *testing.T) {
	const path = "docs/growth.svg"
	rows := growth(t)
	plot := drawGrowth(rows)
	if *updatePlot {
		if err := os.WriteFile(path, []byte(plot), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if deploytest.Read(t, path) != plot {
		t.Errorf("%s does not show the table of docs/cost.md: run this test with -update-plot", path)
	}
	// The bars are those of a gateway or crawler: memory of a small container, and CPU near that of the kernel.
	for _, r := range rows {
		if r.ratio > 1.5 || r.memory > 25+r.destinations*60/1e6 {
			t.Errorf("%v destinations: %v of the bare loop, %v MB", r.destinations, r.ratio, r.memory)
		}
	}
}

// A growthRow is a row of the table: CPU in ms, memory in MB.
type growthRow struct{ destinations, cpu, ratio, memory float64 }

// growth returns the rows of the table of growth with one connection for each destination.
func growth(t *testing.T) (rows []growthRow) {
	t.Helper()
	_, chapter, _ := strings.Cut(deploytest.Read(t, "docs/cost.md"), "\n## Growth\n")
	for _, m := range regexp.MustCompile(`(?m)^\| ([\d,]+) \| (\d+) ms \| ([\d.]+) \| (\d+) MB \|`).FindAllStringSubmatch(chapter, -1) {
		var values [4]float64
		for i := range values {
			v, err := strconv.ParseFloat(strings.ReplaceAll(m[1+i], ",", ""), 64)
			if err != nil {
				t.Fatal(err)
			}
			values[i] = v
		}
		rows = append(rows, growthRow{values[0], values[1], values[2], values[3]})
	}
	if len(rows) != 5 {
		t.Fatalf("the table of growth has %d rows: %v", len(rows), rows)
	}
	return rows
}

// drawGrowth draws CPU time and memory over destinations, each from 0 on.
func drawGrowth(rows []growthRow) string {
	const left, top, width, height = 60, 30, 520, 260
	last := rows[len(rows)-1]
	x := func(r growthRow) float64 { return left + width*r.destinations/last.destinations }
	var b strings.Builder
	b.WriteString(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 340" font-family="sans-serif" font-size="13">
<title>CPU time of a scrape and resident memory by destinations</title>
<rect width="660" height="340" fill="white"/>
`)
	fmt.Fprintf(&b, "<path d=\"M%d %dv%dh%dv-%d\" fill=\"none\" stroke=\"#888\"/>\n", left, top, height, width, height)
	for i, series := range []struct {
		color, unit, title string
		most               float64
		value              func(r growthRow) float64
	}{
		{"#c0392b", "ms", "CPU time of a scrape", 600, func(r growthRow) float64 { return r.cpu }},
		{"#2471a3", "MB", "peak resident memory", 60, func(r growthRow) float64 { return r.memory }},
	} {
		y := func(v float64) float64 { return top + height*(1-v/series.most) }
		var points []string
		for _, r := range rows {
			points = append(points, fmt.Sprintf("%.0f,%.0f", x(r), y(series.value(r))))
			fmt.Fprintf(&b, "<circle cx=\"%.0f\" cy=\"%.0f\" r=\"4\" fill=\"%s\"/>\n", x(r), y(series.value(r)), series.color)
		}
		fmt.Fprintf(&b, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", strings.Join(points, " "), series.color)
		axis, anchor := left-8, "end"
		if i == 1 {
			axis, anchor = left+width+8, "start"
		}
		for step := range 4 {
			v := series.most * float64(step) / 3
			fmt.Fprintf(&b, "<text x=\"%d\" y=\"%.0f\" text-anchor=\"%s\" fill=\"%s\">%.0f</text>\n", axis, y(v)+4, anchor, series.color, v)
		}
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"18\" text-anchor=\"%s\" fill=\"%s\">%s, %s</text>\n", left+i*width, []string{"start", "end"}[i], series.color, series.title, series.unit)
	}
	for _, r := range rows[2:] { // there is no room for the first two
		fmt.Fprintf(&b, "<text x=\"%.0f\" y=\"%d\" text-anchor=\"middle\" fill=\"#444\">%.0f,000</text>\n", x(r), top+height+18, r.destinations/1000)
	}
	b.WriteString("<text x=\"320\" y=\"332\" text-anchor=\"middle\" fill=\"#444\">destinations, one connection each</text>\n</svg>\n")
	return b.String()
}
