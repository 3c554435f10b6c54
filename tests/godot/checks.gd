# VkmqaAttention on the engine's device, on a local one and on one of its own, against the same attention in f64.
extends SceneTree

# Keys and values are exact in the cache's f16, so that only f32 sums are left: of up to 64 products below 4.
const TOLERANCE := 5e-6
# query heads, KV heads, head dim
const SHAPES := [[8, 1, 64], [6, 2, 40]]
# appended tokens (several numbers: several calls), query tokens
const STEPS := [[[37], 37], [[1], 1], [[1], 1], [[1], 1], [[3, 2], 4], [[], 1], [[17], 2]]
const MAX_TOKENS := 64

var failures := 0
var finished_signals := 0


func check(condition: bool, text: String) -> void:
	if not condition:
		failures += 1
		printerr("FAILED: ", text)


func short(value: float) -> String:
	return "%.2fe-6" % (value * 1e6)


func random_floats(generator: RandomNumberGenerator, count: int) -> PackedFloat32Array:
	var values := PackedFloat32Array()
	values.resize(count)
	for i in count:
		values[i] = generator.randi_range(-128, 128) / 64.0
	return values


# Rows of q are the last tokens of the sequence; everything in f64, which GDScript's floats are.
func attention_f64(shape: Array, q: PackedFloat32Array, k: PackedFloat32Array,
		v: PackedFloat32Array) -> PackedFloat64Array:
	var heads: int = shape[0]
	var heads_kv: int = shape[1]
	var dim: int = shape[2]
	@warning_ignore("integer_division")
	var rows := q.size() / (heads * dim)
	@warning_ignore("integer_division")
	var tokens := k.size() / (heads_kv * dim)
	var out := PackedFloat64Array()
	out.resize(q.size())
	for row in rows:
		var seen := tokens - rows + row + 1
		for head in heads:
			@warning_ignore("integer_division")
			var head_kv := head / (heads / heads_kv)
			var at := (row * heads + head) * dim
			var scores := PackedFloat64Array()
			var largest := -INF
			for token in seen:
				var from := (token * heads_kv + head_kv) * dim
				var sum := 0.0
				for d in dim:
					sum += q[at + d] * k[from + d]
				scores.append(sum / sqrt(dim))
				largest = maxf(largest, scores[token])
			var total := 0.0
			for token in seen:
				scores[token] = exp(scores[token] - largest)
				total += scores[token]
			for token in seen:
				var from := (token * heads_kv + head_kv) * dim
				var weight := scores[token] / total
				for d in dim:
					out[at + d] += weight * v[from + d]
	return out


# What each step of a shape is given and has to answer.
func make_steps(shape: Array) -> Array:
	var generator := RandomNumberGenerator.new()
	generator.seed = 20261001
	var k := PackedFloat32Array()
	var v := PackedFloat32Array()
	var steps := []
	for step in STEPS:
		var appends := []
		for tokens in step[0]:
			var new_k := random_floats(generator, tokens * shape[1] * shape[2])
			var new_v := random_floats(generator, tokens * shape[1] * shape[2])
			k.append_array(new_k)
			v.append_array(new_v)
			appends.append([new_k, new_v])
		var q := random_floats(generator, step[1] * shape[0] * shape[2])
		steps.append({appends = appends, q = q, expected = attention_f64(shape, q, k, v),
				tokens = k.size() / (shape[1] * shape[2])})
	return steps


func run_steps(attention: VkmqaAttention, steps: Array, label: String) -> float:
	var worst := 0.0
	for i in steps.size():
		var step: Dictionary = steps[i]
		for rows in step.appends:
			check(attention.append(rows[0], rows[1]) == OK, "%s: append: %s" % [label, attention.get_message()])
		check(attention.attend(step.q) == OK, "%s: attend: %s" % [label, attention.get_message()])
		check(attention.is_busy(), label + ": attend has submitted a step")
		check(attention.attend(step.q) == ERR_BUSY, label + ": a second step while one runs")
		check(attention.get_output().is_empty(), label + ": no output while a step runs")
		if i % 2:
			check(attention.wait() == OK, "%s: wait: %s" % [label, attention.get_message()])
		else:
			var error: int = await attention.finished
			check(error == OK, "%s: finished with %d: %s" % [label, error, attention.get_message()])
		check(not attention.is_busy() and attention.get_tokens() == step.tokens, label + ": counts tokens")
		var out := attention.get_output()
		check(out.size() == step.expected.size(), "%s: %d floats for %d" % [label, out.size(), step.expected.size()])
		for j in mini(out.size(), step.expected.size()):
			var difference := absf(out[j] - step.expected[j])
			worst = maxf(worst, INF if is_nan(difference) else difference)
	check(worst <= TOLERANCE, "%s: differs by %s from f64, more than %s" % [label, short(worst), short(TOLERANCE)])
	return worst


func check_rejections(attention: VkmqaAttention, rendering_device: RenderingDevice) -> void:
	var dim := PackedFloat32Array()
	dim.resize(16)
	var cases := [
		[func(): return attention.create(rendering_device, 8, 0, 64, 64), ERR_INVALID_PARAMETER, "heads_kv is 0"],
		[func(): return attention.create(rendering_device, 8, 3, 64, 64), ERR_INVALID_PARAMETER, "numHeadsQ"],
		[func(): return attention.create(rendering_device, 8, 1, 65, 64), ERR_INVALID_PARAMETER, "headDimQk"],
		[func(): return attention.create(rendering_device, 8, 1, 64, 1 << 40), ERR_INVALID_PARAMETER, "max_tokens is"],
		[func(): return attention.create_own_device("no such", 8, 1, 64, 64), ERR_INVALID_PARAMETER, "no such"],
		[func(): return attention.create_own_device("name:no such", 8, 1, 64, 64), ERR_UNAVAILABLE, "no such"],
		[func(): return attention.append(dim, dim), ERR_UNCONFIGURED, "call create"],
		[func(): return attention.attend(dim), ERR_UNCONFIGURED, "call create"],
		[func(): return attention.create(rendering_device, 2, 1, 16, 2), OK, ""],
		[func(): return attention.append(dim.slice(1), dim), ERR_INVALID_PARAMETER, "k has 15 floats"],
		[func(): return attention.append(dim, PackedFloat32Array()), ERR_INVALID_PARAMETER, "v has 0 floats"],
		[func(): return attention.append(dim, dim + dim), ERR_INVALID_PARAMETER, "k has 1 tokens and v 2"],
		[func(): return attention.attend(dim + dim), ERR_INVALID_PARAMETER, "append their keys"],
		[func(): return attention.append(dim + dim, dim + dim), OK, ""],
		[func(): return attention.append(dim, dim), ERR_INVALID_PARAMETER, "at most 2"],
		[func(): return attention.attend(dim), ERR_INVALID_PARAMETER, "q has 16 floats"],
		[func(): return attention.clear(), OK, ""],
		[func(): return attention.append(dim, dim), OK, ""],
	]
	for case in cases:
		var error: int = case[0].call()
		check(error == case[1] and (case[2] == "" or attention.get_message().contains(case[2])),
				"expected %d and '%s', got %d and '%s'" % [case[1], case[2], error, attention.get_message()])
	check(attention.get_output().is_empty() and attention.get_message().contains("call attend"), "output before a step")
	attention.destroy()
	attention.destroy()
	check(attention.get_description() == "", "nothing to describe after destroy")


func _initialize() -> void:
	var rendering_device := RenderingServer.get_rendering_device()
	check(rendering_device != null, "the engine has a rendering device")
	var local := RenderingServer.create_local_rendering_device()
	check(local.get_driver_resource(RenderingDevice.DRIVER_RESOURCE_LOGICAL_DEVICE, RID(), 0)
			!= rendering_device.get_driver_resource(RenderingDevice.DRIVER_RESOURCE_LOGICAL_DEVICE, RID(), 0),
			"a local rendering device is another VkDevice")
	var steps := SHAPES.map(make_steps)
	var attention := VkmqaAttention.new()
	attention.finished.connect(func(_error): finished_signals += 1)
	root.add_child(attention)
	var modes := {
		"engine's device": func(s): return attention.create(rendering_device, s[0], s[1], s[2], MAX_TOKENS),
		"local device": func(s): return attention.create(local, s[0], s[1], s[2], MAX_TOKENS),
		"own device": func(s): return attention.create_own_device("", s[0], s[1], s[2], MAX_TOKENS),
	}
	for mode in modes:
		for i in SHAPES.size():
			var label := "%s, heads %d:%d" % [mode, SHAPES[i][0], SHAPES[i][1]]
			check(modes[mode].call(SHAPES[i]) == OK, "%s: %s" % [label, attention.get_message()])
			var worst := await run_steps(attention, steps[i], label)
			print("%s: within %s of f64 on %s" % [label, short(worst), attention.get_description()])
	check(finished_signals == modes.size() * SHAPES.size() * STEPS.size(), "%d signals" % finished_signals)
	await process_frame # out of the signal, whose sender may not be freed
	check_rejections(attention, rendering_device)
	# A step may be under way when the node goes.
	check(attention.create(local, 8, 1, 64, MAX_TOKENS) == OK, attention.get_message())
	check(attention.append(steps[0][0].appends[0][0], steps[0][0].appends[0][1]) == OK, attention.get_message())
	check(attention.attend(steps[0][0].q) == OK, attention.get_message())
	attention.free()
	local.free()
	print("all checks passed" if failures == 0 else "%d checks failed" % failures)
	quit(1 if failures else 0)
