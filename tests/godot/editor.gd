# In the editor: GDExtensionManager.reload_extension while a node of the class has a step under way.
@tool
extends SceneTree

var failures := 0


func check(condition: bool, text: String) -> void:
	if not condition:
		failures += 1
		printerr("FAILED: ", text)


func step(attention: Node, value: PackedFloat32Array) -> void:
	check(attention.create_own_device("auto", 1, 1, 16, 4) == OK, attention.get_message())
	check(attention.append(value, value) == OK and attention.attend(value) == OK, attention.get_message())


func _initialize() -> void:
	var one := PackedFloat32Array()
	one.resize(16)
	one.fill(-0.5)
	var attention: Node = ClassDB.instantiate("VkmqaAttention")
	root.add_child(attention)
	for i in 3:
		step(attention, one)
		check(GDExtensionManager.reload_extension("res://vkmqa.gdextension") == GDExtensionManager.LOAD_STATUS_OK,
				"reload")
		check(not attention.is_busy() and attention.get_tokens() == 0, "a node begins anew")
	step(attention, one)
	check(attention.wait() == OK and attention.get_output() == one, attention.get_message())
	attention.free()
	print("all checks passed" if failures == 0 else "%d checks failed" % failures)
	quit(1 if failures else 0)
