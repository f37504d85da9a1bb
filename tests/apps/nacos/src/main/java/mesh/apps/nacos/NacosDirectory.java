package mesh.apps.nacos;

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.listener.NamingEvent;
import com.alibaba.nacos.api.naming.pojo.Instance;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import mesh.apps.Console;
import mesh.apps.Directory;
import mesh.apps.Flags;

/** Nacos, {@code --server}: as Spring Cloud registers there. The instances of a service are one batch. */
public final class NacosDirectory extends Directory {
    private static final String GROUP = "DEFAULT_GROUP";

    private final NamingService naming;
    private final Map<String, Map<String, Instance>> registered = new HashMap<>();

    private NacosDirectory(Flags flags) throws Exception {
        Properties properties = new Properties();
        properties.put("serverAddr", flags.require("server"));
        properties.put("namingLoadCacheAtStart", "false");
        naming = NacosFactory.createNamingService(properties);
    }

    @Override
    protected void register(String name, String host, int port, Map<String, String> metadata) throws Exception {
        Instance instance = new Instance();
        instance.setIp(host);
        instance.setPort(port);
        instance.setEphemeral(true);
        Map<String, String> words = new HashMap<>(metadata);
        instance.setWeight(Integer.parseInt(words.remove("weight")) / 100.0);
        words.put("preserved.register.source", "SPRING_CLOUD");
        instance.setMetadata(words);
        Map<String, Instance> all = registered.computeIfAbsent(name, key -> new LinkedHashMap<>());
        all.put(host + ":" + port, instance);
        batch("batchRegisterInstance", name, List.copyOf(all.values()));
    }

    @Override
    protected void deregister(String name, String host, int port) throws Exception {
        Map<String, Instance> all = registered.get(name);
        Instance gone = all.remove(host + ":" + port);
        if (all.isEmpty()) {
            naming.deregisterInstance(name, GROUP, gone);
        } else {
            batch("batchDeregisterInstance", name, List.of(gone));
        }
    }

    /** By name, since version 1.x has none. */
    private void batch(String method, String name, List<Instance> instances) throws Exception {
        NamingService.class.getMethod(method, String.class, String.class, List.class)
                .invoke(naming, name, GROUP, instances);
    }

    @Override
    protected void watch(String name) throws Exception {
        naming.subscribe(name, GROUP, event -> {
            List<String> entries = new ArrayList<>();
            for (Instance instance : ((NamingEvent) event).getInstances()) {
                Map<String, String> metadata = new HashMap<>(instance.getMetadata());
                metadata.put("weight", Long.toString(Math.round(instance.getWeight() * 100)));
                entries.add(entry(instance.getIp(), instance.getPort(), metadata));
            }
            seen(name, entries);
        });
    }

    public static void main(String[] args) throws Exception {
        Console console = new Console();
        new NacosDirectory(new Flags(args)).serve(console);
    }
}
