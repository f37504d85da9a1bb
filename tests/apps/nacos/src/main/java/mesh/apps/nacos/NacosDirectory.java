package mesh.apps.nacos;

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.listener.NamingEvent;
import com.alibaba.nacos.api.naming.pojo.Instance;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import mesh.apps.Console;
import mesh.apps.Directory;
import mesh.apps.Flags;

/** Nacos, {@code --server}: as Spring Cloud registers there. Each instance has a client of its own, as applications have. */
public final class NacosDirectory extends Directory {
    private static final String GROUP = "DEFAULT_GROUP";

    private final Properties properties = new Properties();
    private final Map<String, NamingService> clients = new HashMap<>();

    private NacosDirectory(Flags flags) {
        properties.put("serverAddr", flags.require("server"));
        properties.put("namingLoadCacheAtStart", "false");
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
        String address = host + ":" + port;
        NamingService client = clients.get(address);
        if (client == null) {
            client = NacosFactory.createNamingService(properties);
            clients.put(address, client);
        }
        client.registerInstance(name, GROUP, instance);
    }

    @Override
    protected void deregister(String name, String host, int port) throws Exception {
        NamingService client = clients.remove(host + ":" + port);
        client.deregisterInstance(name, GROUP, host, port);
        client.shutDown();
    }

    @Override
    protected void watch(String name) throws Exception {
        NacosFactory.createNamingService(properties).subscribe(name, GROUP, event -> {
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
