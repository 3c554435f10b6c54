# Eight query heads look for positions in a sequence that grows by one token a frame; they share one KV head. A key is a
# code of its token's position and the value holds the position itself, so that a head's output is where it looks.
#   godot --path build/samples/godot                  on the engine's device
#   godot --path build/samples/godot -- local         on a local rendering device
#   godot --path build/samples/godot -- own           on a device of vkmqa's own, of the same GPU
#   ... -- MODE N                                     ends after N tokens; exit code 1 when a head has looked elsewhere
extends Node2D

const HEADS := 8
const DIM := 64
const MAX_TOKENS := 1024
const SHARPNESS := 400.0 # of the softmax: keys of other positions weigh nothing

var attention := VkmqaAttention.new()
var local: RenderingDevice
var token := 0
var last_token := 0 # 0: until the window is closed
var targets := PackedInt32Array()
var found := PackedFloat32Array()
var worst := 0.0


func _ready() -> void:
	var arguments := OS.get_cmdline_user_args()
	var mode := arguments[0] if arguments.size() > 0 else "engine"
	last_token = int(arguments[1]) if arguments.size() > 1 else 0
	targets.resize(HEADS)
	found.resize(HEADS)
	add_child(attention)
	attention.finished.connect(_on_finished)
	var error: int
	match mode:
		"engine":
			error = attention.create(RenderingServer.get_rendering_device(), HEADS, 1, DIM, MAX_TOKENS)
		"local":
			local = RenderingServer.create_local_rendering_device()
			error = attention.create(local, HEADS, 1, DIM, MAX_TOKENS)
		"own":
			error = attention.create_own_device("", HEADS, 1, DIM, MAX_TOKENS)
		_:
			printerr("'%s': give engine, local or own" % mode)
			get_tree().quit(2)
			return
	if error:
		printerr(attention.get_message())
		get_tree().quit(error)
		return
	print(attention.get_description())
	next_step()


func _exit_tree() -> void:
	attention.destroy() # before the device that it is on
	if local:
		local.free()


# Keys and queries of the same position have the largest product.
func code(position: int, factor: float) -> PackedFloat32Array:
	var values := PackedFloat32Array()
	@warning_ignore("integer_division")
	for pair in DIM / 2:
		var angle := position * pow(MAX_TOKENS, -2.0 * pair / DIM)
		values.append(factor * cos(angle))
		values.append(factor * sin(angle))
	return values


func next_step() -> void:
	if token == MAX_TOKENS:
		attention.clear()
		token = 0
	var value := PackedFloat32Array()
	value.resize(DIM)
	value[0] = token
	var error := attention.append(code(token, 1.0), value)
	token += 1
	var q := PackedFloat32Array()
	for head in HEADS:
		targets[head] = int((0.5 - 0.5 * cos(token * 0.01 + head)) * (token - 1))
		q.append_array(code(targets[head], SHARPNESS))
	if not error:
		error = attention.attend(q)
	if error:
		printerr(attention.get_message())
		get_tree().quit(error)


func _on_finished(error: int) -> void:
	if error:
		printerr(attention.get_message())
		get_tree().quit(error)
		return
	var out := attention.get_output()
	for head in HEADS:
		found[head] = out[head * DIM]
		worst = maxf(worst, absf(found[head] - targets[head]))
	queue_redraw()
	if last_token and token >= last_token:
		print("%d tokens; the head that looked farthest from its target missed it by %.3f tokens" % [token, worst])
		get_tree().quit(0 if worst < 0.5 else 1)
		return
	next_step.call_deferred()


func _draw() -> void:
	var size := get_viewport_rect().size
	var row := size.y / (HEADS + 1)
	for head in HEADS:
		var y := row * (head + 1)
		draw_line(Vector2(0, y), Vector2(size.x * token / MAX_TOKENS, y), Color.DIM_GRAY, 2.0)
		draw_circle(Vector2(size.x * targets[head] / MAX_TOKENS, y), 9.0, Color.DARK_ORANGE)
		draw_circle(Vector2(size.x * found[head] / MAX_TOKENS, y), 5.0, Color.WHITE)
